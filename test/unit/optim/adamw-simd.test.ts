import { describe, expect, test } from 'vitest'
import {
  createSimdAdamW,
  createTrainingMemory,
  trainingVectors,
} from '../../../src/optim/adamw-simd.ts'
import { adamwStep } from '../../../src/optim/inner.ts'
import { seededRandom } from '../../../src/random.ts'
import { createSchema } from '../../../src/tensor/schema.ts'

const settings = { learningRate: 3e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1 }

/** Ranges that end at every remainder of four, with and without decay. */
const schema = createSchema([
  { name: 'a', shape: [1], decay: true },
  { name: 'b', shape: [7], decay: false },
  { name: 'c', shape: [13, 3], decay: true },
  { name: 'd', shape: [2], decay: false },
  { name: 'e', shape: [64], decay: true },
])

function vectorsOf(seed: string): [Float32Array, Float32Array, Float32Array, Float32Array] {
  const random = seededRandom(seed)
  const draw = (scale: number) =>
    Float32Array.from({ length: schema.size }, () => random.normal() * scale)
  return [draw(1), draw(1e-3), draw(1e-2), draw(1e-2).map(Math.abs)]
}

describe('SIMD AdamW', () => {
  test('has the bits of the plain loop over many steps', () => {
    const [parameters, gradient, firstMoment, secondMoment] = vectorsOf('start')
    const memory = createTrainingMemory(schema.size)
    const simd = trainingVectors(memory, schema.size)
    simd.parameters.set(parameters)
    simd.firstMoment.set(firstMoment)
    simd.secondMoment.set(secondMoment)
    const plainState = { step: 0, firstMoment, secondMoment }
    const simdState = { step: 0 }
    const step = createSimdAdamW(memory, schema, simdState)
    for (let index = 0; index < 50; index += 1) {
      const [, fresh] = vectorsOf(`step ${index}`)
      gradient.set(fresh)
      simd.gradient.set(fresh)
      const factor = index % 2 === 0 ? 1 : 0.37
      adamwStep(parameters, gradient, plainState, schema, settings, factor)
      step(settings, factor)
    }
    expect(simdState.step).toBe(50)
    expect(Float32Array.from(simd.parameters)).toEqual(parameters)
    expect(Float32Array.from(simd.firstMoment)).toEqual(firstMoment)
    expect(Float32Array.from(simd.secondMoment)).toEqual(secondMoment)
    expect(Float32Array.from(simd.gradient)).toEqual(gradient)
  })

  test('writes nothing behind the vectors', () => {
    const odd = createSchema([{ name: 'odd', shape: [5], decay: true }])
    const memory = createTrainingMemory(5)
    const { parameters } = trainingVectors(memory, 5)
    parameters.fill(2)
    const whole = new Float32Array(memory.buffer)
    createSimdAdamW(memory, odd, { step: 0 })(settings)
    expect(new Set(parameters).size).toBe(1)
    expect(parameters[0]).toBeLessThan(2)
    expect(whole.filter((value) => value !== 0)).toHaveLength(5)
  })

  test('refuses models whose vectors exceed 4 GiB', () => {
    expect(() => createTrainingMemory(2 ** 28 + 1)).toThrow('4 GiB')
  })
})
