import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createBlockCodec } from '../../../src/codec/block-codec.ts'
import { SCALE_MAX } from '../../../src/codec/bounds.ts'
import type { Codec } from '../../../src/codec/codec.ts'
import edge from '../../vectors/quant_edge.json' with { type: 'json' }
import int4Block128 from '../../vectors/quant_int4_block128.json' with { type: 'json' }
import int4Block64 from '../../vectors/quant_int4_block64.json' with { type: 'json' }
import int8Block128 from '../../vectors/quant_int8_block128.json' with { type: 'json' }
import int8Block64 from '../../vectors/quant_int8_block64.json' with { type: 'json' }
import { floats } from '../oracle.ts'

const width = (bits: number): 4 | 8 => (bits === 8 ? 8 : 4)

/** Scales and codes, read from the documented form. */
function parse(bytes: Uint8Array, bits: number, block: number, elements: number) {
  const scaleBytes = 4 * Math.ceil(elements / block)
  const body = bytes.slice(scaleBytes)
  const codes =
    bits === 8
      ? [...new Int8Array(body.buffer)]
      : Array.from({ length: elements }, (_, i) => {
          const nibble = (body[i >> 1]! >> (4 * (i % 2))) & 15
          return nibble > 7 ? nibble - 16 : nibble
        })
  return { scales: new Float32Array(bytes.slice(0, scaleBytes).buffer), codes, body }
}

function code(value: string): { code: string } {
  return expect.objectContaining({ code: value })
}

describe.each([int8Block128, int8Block64, int4Block64, int4Block128])(
  'int$bits in blocks of $block',
  ({ bits, block, x, codes, scales, dequantized, ...rest }) => {
    const codec = createBlockCodec(width(bits), block)
    const bytes = codec.encode(floats(x))

    test('hits the vectors exactly', () => {
      const parsed = parse(bytes, bits, block, x.length)
      expect(bytes.length).toBe(codec.encodedBytes(x.length))
      expect(parsed.codes).toEqual(codes)
      expect(parsed.scales).toEqual(floats(scales))
      if ('packed_bytes' in rest) expect([...parsed.body]).toEqual(rest.packed_bytes)
    })

    test('decodes bit-exactly', () => {
      // A code of 0 gives +0, whatever the sign was.
      expect(codec.decode(bytes, x.length)).toEqual(floats(dequantized).map((v) => v + 0))
    })
  },
)

describe('edges', () => {
  test.each([edge.half_even, edge.half_even_int4, edge.zeros, edge.tiny, edge.big])(
    'hits the vectors: int$bits of $x',
    ({ bits, block, x, codes, scales, ...rest }) => {
      const parsed = parse(
        createBlockCodec(width(bits), block).encode(floats(x)),
        bits,
        block,
        x.length,
      )
      expect(parsed.codes).toEqual(codes)
      expect(parsed.scales).toEqual(floats(scales))
      if ('packed_hex' in rest) {
        expect(Buffer.from(parsed.body).toString('hex')).toBe(rest.packed_hex)
      }
    },
  )

  test.each(edge.must_throw)('refuses to encode %s', (name) => {
    const slice = new Float32Array(200)
    slice[150] = Number(name)
    for (const codec of [createBlockCodec(8, 128), createBlockCodec(4, 64)]) {
      expect(() => codec.encode(slice)).toThrow(code('engine_failed'))
      expect(() => codec.encode(slice)).toThrow(name)
    }
  })

  test('clamps codes where a subnormal scale is too coarse', () => {
    // absmax / qmax is 1.008 to 1.4 of the smallest float32 and becomes 1: the absmax is more than qmax scales.
    const smallest = 2 ** -149
    for (const [codec, absmax, qmax] of [
      [createBlockCodec(8, 128), 128, 127],
      [createBlockCodec(8, 128), 178, 127],
      [createBlockCodec(4, 64), 8, 7],
      [createBlockCodec(4, 64), 10, 7],
    ] as const) {
      const slice = floats([absmax * smallest, -absmax * smallest, -absmax * smallest])
      const decoded = codec.decode(codec.encode(slice), 3)
      expect([...decoded]).toEqual([qmax * smallest, -qmax * smallest, -qmax * smallest])
    }
  })

  test('empty slices are empty', () => {
    const codec = createBlockCodec(8, 128)
    expect(codec.encode(new Float32Array(0)).length).toBe(0)
    expect(codec.decode(new Uint8Array(0), 0).length).toBe(0)
  })
})

describe('decode refuses', () => {
  const int8 = createBlockCodec(8, 128)
  const int4 = createBlockCodec(4, 64)
  const slice = Float32Array.from({ length: 301 }, (_, i) => Math.sin(i))

  function expectRefused(codec: Codec, change: (bytes: Uint8Array) => Uint8Array, why: RegExp) {
    const decode = () => codec.decode(change(codec.encode(slice)), slice.length)
    expect(decode).toThrow(code('message_invalid'))
    expect(decode).toThrow(why)
  }

  test.each([int8, int4])('wrong lengths ($id)', (codec) => {
    expectRefused(codec, (bytes) => bytes.subarray(1), /bytes, not/)
    expectRefused(codec, (bytes) => new Uint8Array([...bytes, 0]), /bytes, not/)
    expectRefused(codec, () => new Uint8Array(0), /bytes, not/)
  })

  test.each([NaN, Infinity, -Infinity, -1e-3, SCALE_MAX * 1.001, 3e38])('the scale %f', (scale) => {
    for (const codec of [int8, int4]) {
      expectRefused(
        codec,
        (bytes) => {
          new DataView(bytes.buffer).setFloat32(4, scale, true)
          return bytes
        },
        /the scale .* at block 1/,
      )
    }
  })

  test('the codes -128 and -8', () => {
    const set = (offsetFromEnd: number, byte: number) => (bytes: Uint8Array) => {
      bytes[bytes.length - offsetFromEnd] = byte
      return bytes
    }
    expectRefused(int8, set(7, 0x80), /a code that int8 lacks/)
    expectRefused(int4, set(7, 0x08), /a code that int4 lacks/)
    expectRefused(int4, set(7, 0x80), /a code that int4 lacks/)
  })

  test('a last nibble that is not empty after an odd count', () => {
    expectRefused(
      int4,
      (bytes) => {
        bytes[bytes.length - 1]! |= 0x10
        return bytes
      },
      /a code that int4 lacks/,
    )
  })
})

describe.each([
  { codec: createBlockCodec(8, 128), qmax: 127, block: 128, error: 0.5 },
  { codec: createBlockCodec(4, 64), qmax: 7, block: 64, error: 0.5 },
  { codec: createBlockCodec(2, 64), qmax: 3, block: 64, error: 1 },
])('properties of $codec.id', ({ codec, qmax, block, error }) => {
  const healthy = fc.array(fc.float({ noNaN: true, min: -1e4, max: 1e4 }), { maxLength: 400 })

  test('a round trip errs by half a scale at most, a whole one with 2 bits', () => {
    fc.assert(
      fc.property(healthy, (values) => {
        const slice = floats(values)
        const decoded = codec.decode(codec.encode(slice), slice.length)
        for (let from = 0; from < slice.length; from += block) {
          const part = slice.subarray(from, from + block)
          const scale = Math.fround(part.reduce((max, v) => Math.max(max, Math.abs(v)), 0) / qmax)
          for (const [i, value] of part.entries()) {
            // A subnormal scale is itself off by up to half the smallest float32.
            const bound = scale * error * (1 + 1e-5) + qmax * 2 ** -149
            expect(Math.abs(decoded[from + i]! - value)).toBeLessThanOrEqual(bound)
          }
        }
      }),
    )
  })

  test('a view of a buffer encodes as its copy, and decodes in place', () => {
    fc.assert(
      fc.property(healthy, fc.nat(5), (values, shift) => {
        const shared = new Float32Array(new SharedArrayBuffer(4 * (values.length + shift)))
        shared.set(values, shift)
        const bytes = codec.encode(shared.subarray(shift))
        expect(bytes).toEqual(codec.encode(floats(values)))
        const unaligned = new Uint8Array(bytes.length + 1)
        unaligned.set(bytes, 1)
        const target = shared.subarray(shift)
        expect(codec.decode(unaligned.subarray(1), values.length, target)).toBe(target)
        expect([...target]).toEqual([...codec.decode(bytes, values.length)])
      }),
    )
  })

  test('hostile bytes give finite values or a message_invalid fault', () => {
    fc.assert(
      fc.property(fc.nat(300), fc.uint8Array({ maxLength: 400 }), fc.boolean(), (n, noise, fit) => {
        const bytes = new Uint8Array(fit ? codec.encodedBytes(n) : noise.length)
        for (let i = 0; i < bytes.length; i++) bytes[i] = noise[i % Math.max(1, noise.length)] ?? 0
        try {
          const decoded = codec.decode(bytes, n)
          expect(decoded.every((value) => Math.abs(value) <= 127 * SCALE_MAX)).toBe(true)
        } catch (thrown) {
          expect(thrown).toEqual(code('message_invalid'))
        }
      }),
      { numRuns: 500 },
    )
  })

  test('what it decodes is encoded to values within an ulp again', () => {
    fc.assert(
      fc.property(fc.array(fc.float({ noNaN: true, min: -10, max: 10 })), (values) => {
        const once = codec.decode(codec.encode(floats(values)), values.length)
        const twice = codec.decode(codec.encode(once), values.length)
        for (const [i, value] of once.entries()) {
          expect(Math.abs(twice[i]! - value)).toBeLessThanOrEqual(1e-6 * Math.abs(value) + 2e-43)
        }
      }),
    )
  })

  test('a target of another length is refused', () => {
    const bytes = codec.encode(new Float32Array(10))
    expect(() => codec.decode(bytes, 10, new Float32Array(9))).toThrow(code('internal'))
  })
})
