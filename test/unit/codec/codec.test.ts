import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { MAGNITUDE_MAX } from '../../../src/codec/bounds.ts'
import { CODEC_IDS, codecs } from '../../../src/codec/codec.ts'
import { fromHalves, toHalves } from '../../../src/codec/float16.ts'
import { LIMITS } from '../../../src/limits.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import { seededRandom } from '../../../src/random.ts'
import { norm, subtract } from '../../../src/tensor/vector.ts'
import { floats } from '../oracle.ts'

function code(value: string): { code: string } {
  return expect.objectContaining({ code: value })
}

describe('codecs', () => {
  test.each([
    ['fp32', 4, 0],
    ['fp16', 2, 1e-3],
    ['int8-128', 1.03125, 0.012],
    ['int4-64', 0.5625, 0.2],
    ['topk-1024-int4', 0.25 + 4 / 4096, 0.6],
    ['topk-256-int8', (256 * 2.5 + 4) / 4096, 0.9],
    ['topk-64-fp32', (64 * 5.5) / 4096, 0.97],
    ['sparseloco', (64 * 1.75 + 4) / 4096, 0.97],
  ] as const)('%s takes %f bytes per element of a slice, at its error', (id, bytes, error) => {
    const random = seededRandom('slice')
    const slice = Float32Array.from({ length: LIMITS.sliceElements }, () => 0.02 * random.normal())
    const codec = codecs[id]
    const encoded = codec.encode(slice)
    expect(codec.id).toBe(id)
    expect(encoded.length).toBe(bytes * slice.length)
    expect(codec.encodedBytes(slice.length)).toBe(encoded.length)
    expect(encoded.length).toBeLessThanOrEqual(LIMITS.blobBytes)
    const decoded = codec.decode(encoded, slice.length)
    expect(norm(subtract(decoded, slice)) / norm(slice)).toBeLessThanOrEqual(error)
  })

  test('the default message takes 1.594 bytes per parameter', () => {
    const { pseudoGradientCodec, parametersCodec } = averagingSchema.parse({})
    const bytes = [pseudoGradientCodec, parametersCodec].map((id) =>
      codecs[id].encodedBytes(1 << 18),
    )
    expect((bytes[0]! + bytes[1]!) / (1 << 18)).toBe(1.59375)
  })

  test('slices are encoded as the whole vector would be, block by block', () => {
    const vector = Float32Array.from({ length: 4096 * 5 + 17 }, (_, i) => Math.sin(i * i))
    for (const id of CODEC_IDS) {
      const whole = codecs[id].decode(codecs[id].encode(vector), vector.length)
      for (const [from, to] of [
        [0, 8192],
        [8192, vector.length],
      ] as const) {
        const part = vector.subarray(from, to)
        const decoded = codecs[id].decode(codecs[id].encode(part), to - from)
        expect(decoded).toEqual(whole.subarray(from, to))
      }
    }
  })
})

/** `toHalves` has tests of its own; here it is what `fround` is for float32. */
function halfRounded(value: number): number {
  const target = new Float32Array(1)
  fromHalves(toHalves(floats([value])), target)
  return target[0] ?? NaN
}

describe.each([
  { codec: codecs.fp32, rounded: (value: number) => Math.fround(value), max: MAGNITUDE_MAX },
  { codec: codecs.fp16, rounded: halfRounded, max: 65504 },
])('$codec.id', ({ codec, rounded, max }) => {
  const value = fc.double({ noNaN: true, min: -max, max })

  test('rounds to the nearest and to nothing else', () => {
    fc.assert(
      fc.property(fc.array(value), (values) => {
        const slice = floats(values)
        const expected = [...slice].map(rounded)
        expect([...codec.decode(codec.encode(slice), slice.length)]).toEqual(expected)
      }),
    )
  })

  test('is little-endian', () => {
    const bytes = codec.encode(floats([1]))
    expect([...bytes]).toEqual(codec.id === 'fp32' ? [0, 0, 0x80, 0x3f] : [0, 0x3c])
  })

  test.each([NaN, Infinity, -Infinity])('neither encodes nor decodes %f', (bad) => {
    const slice = floats([1, bad])
    expect(() => codec.encode(slice)).toThrow(code('engine_failed'))
    const hostile = codec.encode(floats([1, 1]))
    const view = new DataView(hostile.buffer)
    if (codec.id === 'fp32') view.setFloat32(4, bad, true)
    else view.setUint16(2, toHalves(floats([bad]))[0] ?? 0, true)
    expect(() => codec.decode(hostile, 2)).toThrow(code('message_invalid'))
  })

  test('hostile bytes give bounded values or a message_invalid fault', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.nat(20), (bytes, elements) => {
        try {
          const decoded = codec.decode(bytes, elements)
          expect(bytes.length).toBe(codec.encodedBytes(elements))
          expect(decoded.every((element) => Math.abs(element) <= MAGNITUDE_MAX)).toBe(true)
        } catch (thrown) {
          expect(thrown).toEqual(code('message_invalid'))
        }
      }),
      { numRuns: 500 },
    )
  })

  test('the encoding shares no memory with the slice', () => {
    const slice = floats([1, 2, 3])
    const bytes = codec.encode(slice)
    slice.fill(9)
    const decoded = codec.decode(bytes, 3)
    bytes.fill(0)
    expect([...decoded]).toEqual([1, 2, 3])
  })
})

test('fp16 refuses what it cannot hold, fp32 what no healthy peer sends', () => {
  expect(() => codecs.fp16.encode(floats([7e4]))).toThrow(code('engine_failed'))
  const absurd = codecs.fp32.encode(floats([2 * MAGNITUDE_MAX]))
  expect(() => codecs.fp32.decode(absurd, 1)).toThrow(code('message_invalid'))
})
