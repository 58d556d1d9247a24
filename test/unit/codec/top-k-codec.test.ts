import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { MAGNITUDE_MAX, SCALE_MAX } from '../../../src/codec/bounds.ts'
import type { Codec } from '../../../src/codec/codec.ts'
import { createTopKCodec } from '../../../src/codec/top-k-codec.ts'
import { encodeWithFeedback } from '../../../src/optim/error-feedback.ts'
import twoBit from '../../vectors/sparseloco_2bit.json' with { type: 'json' }
import int4 from '../../vectors/sparseloco_int4.json' with { type: 'json' }
import int8 from '../../vectors/sparseloco_int8.json' with { type: 'json' }
import { expectClose, floats } from '../oracle.ts'

function code(value: string): { code: string } {
  return expect.objectContaining({ code: value })
}

/** Bits of fixed width, the first in the low bits of the first byte. */
function readBits(bytes: Uint8Array, width: number, count: number): number[] {
  const bits = Array.from(bytes, (byte) => byte.toString(2).padStart(8, '0').split('').toReversed())
  const flat = bits.flat()
  return Array.from({ length: count }, (_, j) =>
    Number.parseInt(
      flat
        .slice(j * width, (j + 1) * width)
        .toReversed()
        .join(''),
      2,
    ),
  )
}

const signed = (value: number, bits: number): number =>
  value >= 2 ** (bits - 1) ? value - 2 ** bits : value

describe.each([
  { bits: 2, vectors: twoBit },
  { bits: 4, vectors: int4 },
  { bits: 8, vectors: int8 },
] as const)('the vectors of SparseLoCo with $bits bits', ({ bits, vectors }) => {
  const { chunk, k, beta, rounds, tolerance } = vectors
  const codec = createTopKCodec({ id: 'vectors', chunk, keep: k, bits })

  test('indices, codes and scales are exact, what is sent and what is left within the tolerance', () => {
    const elements = rounds[0]!.pg.length
    const residual = new Float32Array(elements)
    for (const { pg, messages, sent, error } of rounds) {
      const bytes = encodeWithFeedback(codec, floats(pg), residual, beta)
      // The documented form: indices of log2(16) = 4 bits, scales, codes.
      const kept = messages.flatMap(({ indices }) => indices)
      const indexBytes = Math.ceil((kept.length * 4) / 8)
      const scaleBytes = 4 * messages.length
      expect(readBits(bytes, 4, kept.length)).toEqual(kept)
      const scales = bytes.slice(indexBytes, indexBytes + scaleBytes)
      expectClose(new Float32Array(scales.buffer), floats(messages.map(({ scale }) => scale)), {
        rtol: 1e-6,
        atol: 0,
      })
      const codes = readBits(bytes.subarray(indexBytes + scaleBytes), bits, kept.length)
      expect(bits === 2 ? codes : codes.map((value) => signed(value, bits))).toEqual(
        messages.flatMap((message) => message.codes),
      )
      expect(bytes.length).toBe(codec.encodedBytes(elements))
      expectClose(codec.decode(bytes, elements), sent, tolerance)
      expectClose(residual, error, tolerance)
    }
  })

  test('the first round, which no rounding of the decimals reaches, is bit-exact', () => {
    const { pg, messages, sent } = rounds[0]!
    const bytes = codec.encode(floats(pg))
    const indexBytes = Math.ceil((messages.length * k * 4) / 8)
    const scales = bytes.slice(indexBytes, indexBytes + 4 * messages.length)
    expect(new Float32Array(scales.buffer)).toEqual(floats(messages.map(({ scale }) => scale)))
    expect([...codec.decode(bytes, pg.length)].map((v) => v + 0)).toEqual(
      [...floats(sent)].map((v) => v + 0),
    )
  })
})

const indexed = createTopKCodec({ id: 'indexed', chunk: 64, keep: 4, bits: 2 })
const bitmapped = createTopKCodec({ id: 'bitmapped', chunk: 64, keep: 16, bits: 4 })
const exact = createTopKCodec({ id: 'exact', chunk: 64, keep: 8, bits: 32 })
const all = [indexed, bitmapped, exact]
const KEEP = new Map<Codec, number>([
  [indexed, 4],
  [bitmapped, 16],
  [exact, 8],
])

describe('what is kept', () => {
  test('are the largest magnitudes, of equal ones the first', () => {
    const slice = new Float32Array(64)
    slice.set([3, -7, 3, 3, 3, 5, -3, 3, 3, 3, 3, 0.5])
    const kept = [...exact.decode(exact.encode(slice), 64).entries()].filter(([, v]) => v !== 0)
    expect(kept).toEqual([0, 1, 2, 3, 4, 5, 6, 7].map((i) => [i, slice[i]]))
  })

  test('is coarse in 2 bits: 3 scales from twice the scale on, else 1, and 0 is above 0', () => {
    const slice = floats([-3, 2, -2, 1.999])
    expect([...indexed.decode(indexed.encode(slice), 4)]).toEqual([-3, 3, -3, 1])
    expect([...indexed.decode(indexed.encode(floats([3, 0, -0, -1e-9])), 4)]).toEqual([3, 1, 1, -1])
  })

  test('is all of a last chunk that is short', () => {
    const slice = Float32Array.from({ length: 64 + 7 }, (_, i) => 1 + i)
    const decoded = exact.decode(exact.encode(slice), slice.length)
    expect(decoded.subarray(64)).toEqual(slice.subarray(64))
    expect(decoded.subarray(0, 64).filter((v) => v !== 0)).toEqual(slice.subarray(56, 64))
  })

  test('a slice of zeros and an empty one decode to themselves', () => {
    for (const codec of all) {
      expect(codec.decode(codec.encode(new Float32Array(100)), 100)).toEqual(new Float32Array(100))
      expect(codec.encode(new Float32Array(0)).length).toBe(0)
      expect(codec.decode(new Uint8Array(0), 0).length).toBe(0)
    }
  })

  test.each([NaN, Infinity, -Infinity])('%f is refused wherever it stands', (bad) => {
    for (const codec of all) {
      for (const at of [0, 63, 64, 99]) {
        const slice = Float32Array.from({ length: 100 }, (_, i) => 1e30 * Math.sin(i))
        slice[at] = bad
        expect(() => codec.encode(slice)).toThrow(code('engine_failed'))
      }
    }
  })
})

describe('properties', () => {
  const values = fc.array(
    fc.oneof(fc.float({ noNaN: true, min: -1e4, max: 1e4 }), fc.constantFrom(0, -0, 1, -1, 1e-45)),
    { maxLength: 300 },
  )

  test.each(all)('$id keeps just the largest of every chunk', (codec) => {
    fc.assert(
      fc.property(values, (array) => {
        const slice = floats(array)
        const bytes = codec.encode(slice)
        expect(bytes.length).toBe(codec.encodedBytes(slice.length))
        const decoded = codec.decode(bytes, slice.length)
        for (let from = 0; from < slice.length; from += 64) {
          const chunk = [...slice.subarray(from, from + 64)]
          const expected = chunk
            .map((value, i) => ({ i, magnitude: Math.abs(value) }))
            .sort((a, b) => b.magnitude - a.magnitude || a.i - b.i)
            .slice(0, KEEP.get(codec))
          const isKept = new Set(expected.map(({ i }) => i))
          const scale = Math.max(0, ...expected.map(({ magnitude }) => magnitude))
          for (const [i, value] of chunk.entries()) {
            const sent = decoded[from + i]!
            if (!isKept.has(i)) expect(sent).toBe(0)
            else if (codec === exact) expect(sent).toBe(value)
            // Two bits err by up to a third of the largest, four by half of a seventh.
            else expect(Math.abs(sent - value)).toBeLessThanOrEqual(scale * 0.334 + 1e-44)
          }
        }
      }),
    )
  })

  test.each(all)(
    '$id: a view of a shared buffer encodes as its copy, and decodes in place',
    (codec) => {
      fc.assert(
        fc.property(values, fc.nat(5), (array, shift) => {
          const shared = new Float32Array(new SharedArrayBuffer(4 * (array.length + shift)))
          shared.set(array, shift)
          const bytes = codec.encode(shared.subarray(shift))
          expect(bytes).toEqual(codec.encode(floats(array)))
          const unaligned = new Uint8Array(bytes.length + 1)
          unaligned.set(bytes, 1)
          const target = shared.subarray(shift)
          expect(codec.decode(unaligned.subarray(1), array.length, target)).toBe(target)
          expect([...target]).toEqual([...codec.decode(bytes, array.length)])
        }),
      )
    },
  )

  test.each(all)(
    '$id: hostile bytes give few bounded values or a message_invalid fault',
    (codec) => {
      let accepted = 0
      fc.assert(
        fc.property(
          values,
          fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 3 }),
          fc.boolean(),
          fc.uint8Array({ maxLength: 200 }),
          (array, changes, isForged, noise) => {
            const bytes = isForged ? noise : codec.encode(floats(array))
            for (const [at, byte] of changes) if (bytes.length > 0) bytes[at % bytes.length] = byte
            try {
              const decoded = codec.decode(bytes, array.length)
              accepted++
              expect(decoded.every((value) => Math.abs(value) <= MAGNITUDE_MAX)).toBe(true)
              const kept = decoded.filter((value) => value !== 0).length
              expect(kept).toBeLessThanOrEqual(Math.ceil(array.length / 64) * KEEP.get(codec)!)
            } catch (thrown) {
              expect(thrown).toEqual(code('message_invalid'))
            }
          },
        ),
        { numRuns: 1000 },
      )
      expect(accepted).toBeGreaterThan(50)
    },
  )
})

describe('decode refuses', () => {
  const slice = Float32Array.from({ length: 64 + 20 }, (_, i) => Math.sin(i) + 2)

  function expectRefused(codec: Codec, change: (bytes: Uint8Array) => Uint8Array, why: RegExp) {
    const decode = () => codec.decode(change(codec.encode(slice)), slice.length)
    expect(decode).toThrow(code('message_invalid'))
    expect(decode).toThrow(why)
  }
  const set = (at: number, byte: number) => (bytes: Uint8Array) => {
    bytes[at] = byte
    return bytes
  }

  test.each(all)('wrong lengths ($id)', (codec) => {
    expectRefused(codec, (bytes) => bytes.subarray(1), /bytes, not/)
    expectRefused(codec, (bytes) => new Uint8Array([...bytes, 0]), /bytes, not/)
  })

  /** 8 indices of 6 bits, 4 of each chunk, are the first 6 bytes. */
  const withIndices =
    (...indices: number[]) =>
    (bytes: Uint8Array): Uint8Array => {
      const bits = indices.map((i) =>
        i.toString(2).padStart(6, '0').split('').toReversed().join(''),
      )
      for (let at = 0; at < 6; at++) {
        const byte = bits.join('').slice(8 * at, 8 * at + 8)
        bytes[at] = Number.parseInt(byte.split('').toReversed().join(''), 2)
      }
      return bytes
    }

  test('indices that repeat, descend or lie beyond the slice', () => {
    const good = withIndices(1, 2, 3, 63, 0, 1, 2, 19)(indexed.encode(slice))
    expect(indexed.decode(good, slice.length).filter((v) => v !== 0)).toHaveLength(8)
    expectRefused(indexed, withIndices(1, 2, 2, 63, 0, 1, 2, 19), /positions/)
    expectRefused(indexed, withIndices(1, 3, 2, 63, 0, 1, 2, 19), /positions/)
    expectRefused(indexed, withIndices(1, 2, 3, 63, 0, 1, 2, 20), /positions/)
    expectRefused(indexed, withIndices(1, 2, 3, 4, 3, 2, 1, 0), /positions/)
  })

  test('bits behind the last index, and behind the last code', () => {
    // 3 indices of 6 bits leave 6 bits of the third byte; 3 codes of 2 bits leave 2 of the last.
    const short = slice.subarray(0, 3)
    for (const at of [2, 3 + 4]) {
      const bytes = indexed.encode(short)
      expect(indexed.decode(bytes, 3).every((v) => v !== 0)).toBe(true)
      bytes[at]! |= 0x80
      expect(() => indexed.decode(bytes, 3)).toThrow(code('message_invalid'))
    }
  })

  test('bitmaps with too many or too few elements of a chunk, or elements beyond the slice', () => {
    // 84 elements are 11 bytes: 8 of the first chunk, 2 and a half of the second.
    expectRefused(bitmapped, set(0, 0xff), /positions/)
    expectRefused(bitmapped, set(0, 0), /positions/)
    expectRefused(bitmapped, set(10, 0xff), /positions/)
    // The last element of the slice is kept, as the slice's last chunk has 20 and 16 are.
    const last = bitmapped.decode(bitmapped.encode(slice), 84).findLastIndex((v) => v !== 0)
    expectRefused(bitmapped, flip(last), /positions/)
  })

  const flip =
    (...places: number[]) =>
    (bytes: Uint8Array): Uint8Array => {
      for (const place of places) bytes[place >> 3]! ^= 1 << (place & 7)
      return bytes
    }

  test('bitmaps with the right total, but not the right share of each chunk', () => {
    const kept = bitmapped.decode(bitmapped.encode(slice), 84).map((v) => (v === 0 ? 0 : 1))
    const [free, freeBehind] = [kept.indexOf(0), kept.indexOf(0, 64)]
    const [taken, takenBehind] = [kept.indexOf(1), kept.indexOf(1, 64)]
    expectRefused(bitmapped, flip(free, takenBehind), /positions/)
    expectRefused(bitmapped, flip(taken, freeBehind), /positions/)
    expect(bitmapped.decode(flip(free, taken)(bitmapped.encode(slice)), 84)).toHaveLength(84)
  })

  test.each([NaN, Infinity, -1e-3, SCALE_MAX * 1.001])('the scale %f', (scale) => {
    for (const [codec, scalesFrom] of [
      [indexed, 6],
      [bitmapped, 11],
    ] as const) {
      expectRefused(
        codec,
        (bytes) => {
          new DataView(bytes.buffer).setFloat32(scalesFrom + 4, scale, true)
          return bytes
        },
        /the scale .* at block 1/,
      )
    }
  })

  test('a target of another length', () => {
    const bytes = indexed.encode(new Float32Array(10))
    expect(() => indexed.decode(bytes, 10, new Float32Array(9))).toThrow(code('internal'))
  })
})

test('a reused target keeps nothing of what it held', () => {
  const slice = Float32Array.from({ length: 128 }, (_, i) => Math.cos(i))
  for (const codec of all) {
    const target = new Float32Array(128).fill(9)
    expect(codec.decode(codec.encode(slice), 128, target)).toEqual(
      codec.decode(codec.encode(slice), 128),
    )
  }
})
