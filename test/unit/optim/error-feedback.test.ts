import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { codecs } from '../../../src/codec/codec.ts'
import { createTopKCodec } from '../../../src/codec/top-k-codec.ts'
import { encodeWithControl, encodeWithFeedback } from '../../../src/optim/error-feedback.ts'
import { seededRandom } from '../../../src/random.ts'
import { norm } from '../../../src/tensor/vector.ts'
import econtrol from '../../vectors/econtrol.json' with { type: 'json' }
import topkEf from '../../vectors/topk_ef.json' with { type: 'json' }
import { expectClose, floats } from '../oracle.ts'

/** Top `keep` of a vector that is shorter than the chunk. */
const topK = (keep: number) => createTopKCodec({ id: 'vectors', chunk: 4096, keep, bits: 32 })

/** The indices that a vector of top-k has, read from the documented form: 12 bits each. */
function indicesOf(bytes: Uint8Array, count: number): number[] {
  return Array.from({ length: count }, (_, j) => {
    const pair = bytes[(12 * j) >> 3]! | (bytes[((12 * j) >> 3) + 1]! << 8)
    return (pair >> ((12 * j) & 7)) & 0xfff
  })
}

describe('error feedback', () => {
  test('hits the vectors of classical top-k', () => {
    const codec = topK(topkEf.k)
    const residual = new Float32Array(topkEf.rounds[0]!.pg.length)
    for (const { pg, indices, values, error } of topkEf.rounds) {
      const bytes = encodeWithFeedback(codec, floats(pg), residual, topkEf.beta)
      expect(indicesOf(bytes, indices.length)).toEqual(indices)
      const sent = codec.decode(bytes, pg.length)
      expectClose(
        indices.map((i) => sent[i]!),
        values,
        topkEf.tolerance,
      )
      expectClose(residual, error, topkEf.tolerance)
    }
  })

  test('conserves: what was sent and what is left make what came in', () => {
    const random = seededRandom('conserves')
    for (const id of ['int4-64', 'topk-1024-int4', 'topk-64-fp32', 'sparseloco'] as const) {
      const codec = codecs[id]
      const residual = new Float32Array(5000)
      const [came, went] = [new Float64Array(5000), new Float64Array(5000)]
      for (let round = 0; round < 20; round++) {
        const pseudoGradient = Float32Array.from(came, () => 0.01 * random.normal())
        const bytes = encodeWithFeedback(codec, pseudoGradient, residual, 1)
        const sent = codec.decode(bytes, 5000)
        for (let i = 0; i < 5000; i++) {
          came[i]! += pseudoGradient[i]!
          went[i]! += sent[i]!
        }
      }
      expectClose(
        residual.map((left, i) => left + went[i]!),
        came,
        { rtol: 1e-4, atol: 1e-6 },
      )
    }
  })

  test('sends in time what a top-k leaves out at first', () => {
    const codec = codecs['topk-64-fp32']
    const constant = Float32Array.from({ length: 4096 }, (_, i) => 1e-3 * (1 + (i % 7)))
    const residual = new Float32Array(4096)
    const sum = new Float32Array(4096)
    const rounds = 400
    for (let round = 0; round < rounds; round++) {
      const sent = codec.decode(encodeWithFeedback(codec, constant, residual, 1), 4096)
      for (let i = 0; i < 4096; i++) sum[i]! += sent[i]!
    }
    // No element is ever more than the largest threshold behind, which the rounds outgrow.
    for (const [i, value] of constant.entries()) {
      expect(sum[i]! / (rounds * value)).toBeGreaterThan(0.5)
      expect(sum[i]! / (rounds * value)).toBeLessThanOrEqual(1 + 1e-5)
    }
  })

  test('a beta below 1 lets old error fade, and 0 forgets it', () => {
    const codec = codecs['topk-64-fp32']
    const left = (beta: number): number => {
      const residual = new Float32Array(4096)
      residual.fill(1e-3)
      encodeWithFeedback(codec, new Float32Array(4096), residual, beta)
      return norm(residual)
    }
    expect(left(0)).toBe(0)
    expect(left(0.95)).toBeCloseTo(0.95 * left(1), 7)
    expect(left(1)).toBeCloseTo(1e-3 * Math.sqrt(4096 - 64), 7)
  })

  test('slices one after the other are the whole vector, bit by bit', () => {
    const random = seededRandom('slices')
    const vector = Float32Array.from({ length: 3 * 4096 + 10 }, () => random.normal())
    for (const id of ['int4-64', 'sparseloco'] as const) {
      const [whole, sliced] = [vector.toReversed(), vector.toReversed()]
      encodeWithFeedback(codecs[id], vector, whole, 0.95)
      for (const [from, to] of [
        [0, 8192],
        [8192, vector.length],
      ] as const) {
        encodeWithFeedback(codecs[id], vector.subarray(from, to), sliced.subarray(from, to), 0.95)
      }
      expect(sliced).toEqual(whole)
      expect(whole).not.toEqual(vector.toReversed())
    }
  })

  test('what is left of a vector is at most the vector: top-k in 4 bits is a contraction', () => {
    fc.assert(
      fc.property(fc.array(fc.float({ noNaN: true, min: -100, max: 100 })), (values) => {
        const residual = new Float32Array(values.length)
        const codec = createTopKCodec({ id: 'small', chunk: 16, keep: 8, bits: 4 })
        encodeWithFeedback(codec, floats(values), residual, 1)
        expect(norm(residual)).toBeLessThanOrEqual(norm(floats(values)) * (1 + 1e-6))
      }),
    )
  })

  test('refuses what diverged, and vectors of unlike lengths', () => {
    const bad = new Float32Array(10).fill(Infinity)
    expect(() => encodeWithFeedback(codecs.sparseloco, bad, new Float32Array(10), 1)).toThrow(
      expect.objectContaining({ code: 'engine_failed' }),
    )
    expect(() => encodeWithFeedback(codecs.sparseloco, bad, new Float32Array(9), 1)).toThrow(
      /do not match/,
    )
  })
})

describe('EControl', () => {
  test('hits the vectors', () => {
    const codec = topK(econtrol.k)
    const elements = econtrol.rounds[0]!.g.length
    const state = { residual: new Float32Array(elements), variate: new Float32Array(elements) }
    for (const { g, indices, D, e, h } of econtrol.rounds) {
      const bytes = encodeWithControl(codec, floats(g), state, econtrol.eta)
      expect(indicesOf(bytes, indices.length)).toEqual(indices)
      expectClose(codec.decode(bytes, elements), D, econtrol.tolerance)
      expectClose(state.residual, e, econtrol.tolerance)
      expectClose(state.variate, h, econtrol.tolerance)
    }
  })

  test('h comes to a gradient that stays', () => {
    const gradient = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i))
    const state = { residual: new Float32Array(64), variate: new Float32Array(64) }
    for (let round = 0; round < 400; round++) encodeWithControl(topK(8), gradient, state, 0.3)
    expectClose(state.variate, gradient, { rtol: 0, atol: 0.05 })
  })
})
