import { describe, expect, test } from 'vitest'
import {
  decodeOptimizerState,
  encodeOptimizerState,
} from '../../../../node/engine/optimizer-state.ts'
import { createSchema } from '../../../../src/tensor/schema.ts'

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
    ['of another version', damaged((view) => view.setUint32(4, 2, true)), 'version 2'],
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
