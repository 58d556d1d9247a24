import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  compactState,
  decodeOptimizerState,
  encodeOptimizerState,
} from '../../../src/optim/optimizer-state.ts'
import { seededRandom } from '../../../src/random.ts'
import { createSchema } from '../../../src/tensor/schema.ts'

const schema = createSchema([{ name: 'a', shape: [2, 3], decay: true }])
const empty = () => ({
  step: 0,
  firstMoment: new Float32Array(6),
  secondMoment: new Float32Array(6),
})
const full = {
  step: 70_000,
  firstMoment: Float32Array.of(-1, 2, 1e-38, 3.4e38, 0, -0),
  secondMoment: Float32Array.of(6, 5, 4, 3, 2, 1),
}
const encoded = encodeOptimizerState(full, schema)

describe('inner-optimizer state', () => {
  test('comes back as it was', () => {
    const state = empty()
    decodeOptimizerState(encoded, state, schema)
    expect(state).toEqual(full)
  })

  test('is read from bytes that are not aligned', () => {
    const shifted = new Uint8Array(encoded.length + 1)
    shifted.set(encoded, 1)
    const state = empty()
    decodeOptimizerState(shifted.subarray(1), state, schema)
    expect(state).toEqual(full)
  })

  const damaged = (change: (view: DataView) => void): Uint8Array => {
    const copy = encoded.slice()
    change(new DataView(copy.buffer))
    return copy
  }

  test.each([
    ['empty', new Uint8Array(0), '0 bytes'],
    ['cut', encoded.subarray(0, -1), 'bytes instead of'],
    ['too long', Uint8Array.from([...encoded, 0]), 'bytes instead of'],
    ['of another kind', damaged((view) => view.setUint32(0, 1, true)), 'begin like one'],
    ['of another version', damaged((view) => view.setUint32(4, 3, true)), 'version 3'],
    [
      'of another model',
      damaged((view) => view.setUint8(20, view.getUint8(20) ^ 1)),
      'another model',
    ],
    ['not finite', damaged((view) => view.setFloat32(48, Number.NaN, true)), 'not finite'],
    ['not finite at the end', damaged((view) => view.setFloat32(92, Infinity, true)), 'not finite'],
  ])('that is %s is refused and changes nothing', (_name, bytes, reason) => {
    const state = empty()
    expect(() => decodeOptimizerState(bytes, state, schema)).toThrow(
      expect.objectContaining({ code: 'state_corrupt', message: expect.stringContaining(reason) }),
    )
    expect(state).toEqual(empty())
  })
})

const concatenated = (parts: Iterable<Uint8Array>): Uint8Array =>
  new Uint8Array(Buffer.concat([...parts]))

describe('state for a newcomer', () => {
  const elements = LIMITS.sliceElements + 300
  const large = createSchema([{ name: 'a', shape: [elements], decay: true }])
  const random = seededRandom('second moments')
  const state = {
    step: 900,
    firstMoment: new Float32Array(elements).fill(1),
    // As gradients are: of very different sizes.
    secondMoment: Float32Array.from({ length: elements }, () => Math.exp(6 * random.normal() - 20)),
  }
  const whole = encodeOptimizerState(state, large)
  const compact = (): Uint8Array => concatenated(compactState(whole, large))
  const zero = () => ({
    step: 0,
    firstMoment: new Float32Array(elements),
    secondMoment: new Float32Array(elements),
  })

  test('is the second moments, in a byte each', () => {
    const bytes = compact()
    expect(bytes.length).toBeLessThan(1.04 * elements + 100)
    const read = zero()
    decodeOptimizerState(bytes, read, large)
    expect(read.step).toBe(900)
    expect(read.firstMoment).toEqual(new Float32Array(elements))
    let [least, worst] = [Infinity, 0]
    for (let from = 0; from < elements; from += 128) {
      const roots = state.secondMoment.subarray(from, from + 128).map(Math.sqrt)
      const largest = Math.max(...roots)
      const given = read.secondMoment.subarray(from, from + 128).map(Math.sqrt)
      least = Math.min(least, Math.min(...given) / largest)
      worst = Math.max(
        worst,
        ...given.map((root, index) => Math.abs(root - roots[index]!) / largest),
      )
    }
    // Never less than what a byte can tell: steps would be too long.
    expect(least).toBeGreaterThan(1 / 128)
    expect(worst).toBeLessThan(1 / 126)
  })

  test('of zeros is zeros', () => {
    const read = zero()
    const nothing = encodeOptimizerState(zero(), large)
    decodeOptimizerState(concatenated(compactState(nothing, large)), read, large)
    expect(read).toEqual(zero())
  })

  test('that is damaged is refused and changes nothing', () => {
    const bytes = compact()
    const huge = bytes.slice()
    // The scale of the first block.
    new DataView(huge.buffer).setFloat32(48, Number.NaN, true)
    for (const damaged of [bytes.subarray(0, -1), bytes.subarray(0, 48), huge]) {
      const read = zero()
      expect(() => decodeOptimizerState(damaged, read, large)).toThrow(
        expect.objectContaining({ code: 'state_corrupt' }),
      )
      expect(read).toEqual(zero())
    }
    expect(() => [...compactState(bytes, large)]).toThrow(
      expect.objectContaining({ code: 'state_corrupt' }),
    )
  })
})
