import { describe, expect, test } from 'vitest'
import {
  adamwStep,
  gradientClipFactor,
  learningRateAt,
  restartFactor,
  type AdamWState,
} from '../../../src/optim/inner.ts'
import { createSchema } from '../../../src/tensor/schema.ts'
import { norm, scaleInPlace } from '../../../src/tensor/vector.ts'
import adamw from '../../vectors/adamw.json' with { type: 'json' }
import clipGradNorm from '../../vectors/clip_grad_norm.json' with { type: 'json' }
import { expectClose, floats } from '../oracle.ts'

const settings = {
  learningRate: adamw.hyper.lr,
  beta1: adamw.hyper.beta1,
  beta2: adamw.hyper.beta2,
  epsilon: adamw.hyper.eps,
  weightDecay: adamw.hyper.weight_decay,
}

function zeroState(size: number): AdamWState {
  return { step: 0, firstMoment: new Float32Array(size), secondMoment: new Float32Array(size) }
}

describe('adamwStep', () => {
  test('hits the vectors, parameters and moments', () => {
    const parameters = floats(adamw.p0)
    const state = zeroState(parameters.length)
    const schema = createSchema([{ name: 'w', shape: [parameters.length], decay: true }])
    for (const { t, grad, p, m, v } of adamw.steps) {
      adamwStep(parameters, floats(grad), state, schema, settings)
      expect(state.step).toBe(t)
      expectClose(parameters, p, adamw.tolerance)
      expectClose(state.firstMoment, m, adamw.tolerance)
      expectClose(state.secondMoment, v, adamw.tolerance)
    }
  })

  test('decays the tensors that the schema names, whatever their order', () => {
    const schema = createSchema([
      { name: 'a', shape: [2], decay: true },
      { name: 'b', shape: [3], decay: false },
      { name: 'c', shape: [1], decay: true },
    ])
    const parameters = floats([1, 1, 1, 1, 1, 1])
    const fixed = { ...settings, learningRate: 0.5, weightDecay: 0.5 }
    adamwStep(parameters, new Float32Array(6), zeroState(6), schema, fixed)
    // Without a gradient, decay alone moves parameters.
    expect([...parameters]).toEqual([0.75, 0.75, 1, 1, 1, 0.75])
  })

  test('scales the gradient on the way in as if it had been clipped before', () => {
    const schema = createSchema([{ name: 'w', shape: [16], decay: true }])
    const gradient = floats(clipGradNorm.grad)
    const clipped = floats(clipGradNorm.clipped)
    const factor = gradientClipFactor(norm(gradient), clipGradNorm.max_norm)
    const [a, b] = [new Float32Array(16).fill(1), new Float32Array(16).fill(1)]
    adamwStep(a, gradient, zeroState(16), schema, settings, factor)
    adamwStep(b, clipped, zeroState(16), schema, settings)
    expectClose(a, b, { rtol: 1e-6, atol: 0 })
    expect(gradient).toEqual(floats(clipGradNorm.grad))
  })

  test('refuses vectors that are not as long as the schema', () => {
    const schema = createSchema([{ name: 'w', shape: [4], decay: true }])
    const five = new Float32Array(5)
    expect(() => adamwStep(five, five, zeroState(5), schema, settings)).toThrow(/4 parameters/)
  })
})

describe('gradientClipFactor', () => {
  test('hits the vector', () => {
    const gradient = floats(clipGradNorm.grad)
    const gradientNorm = norm(gradient)
    expect(gradientNorm).toBeCloseTo(clipGradNorm.norm, 12)
    scaleInPlace(gradient, gradientClipFactor(gradientNorm, clipGradNorm.max_norm))
    expectClose(gradient, clipGradNorm.clipped, clipGradNorm.tolerance)
  })

  test('leaves small gradients alone', () => {
    expect(gradientClipFactor(0.5, 1)).toBe(1)
    expect(gradientClipFactor(0, 1)).toBe(1)
  })
})

describe('restartFactor', () => {
  test('shortens the first steps of an optimizer that starts in the middle of a run, and no others', () => {
    expect(Array.from({ length: 12 }, (_, done) => restartFactor(done, 100 + done))).toEqual([
      0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1,
    ])
    for (const step of [0, 3, 500]) expect(restartFactor(step, step)).toBe(1)
  })
})

describe('learningRateAt', () => {
  const schedule = { learningRate: 6e-3, warmupSteps: 40, finalFraction: 0.1 }

  test('follows the reference formula over the whole run', () => {
    const total = 1000
    for (let t = 0; t < total; t++) {
      const expected =
        6e-3 * Math.min(1, (t + 1) / 40) * (0.1 + 0.45 * (1 + Math.cos((Math.PI * t) / total)))
      expect(learningRateAt(schedule, t, total)).toBeCloseTo(expected, 15)
    }
  })

  test('warms up, ends at the final fraction and stays there', () => {
    expect(learningRateAt(schedule, 0, 1000)).toBeCloseTo(6e-3 / 40, 9)
    expect(learningRateAt(schedule, 1000, 1000)).toBeCloseTo(6e-4, 12)
    expect(learningRateAt(schedule, 5000, 1000)).toBeCloseTo(6e-4, 12)
    expect(learningRateAt({ ...schedule, warmupSteps: 0 }, 0, 1000)).toBeCloseTo(6e-3, 12)
  })
})
