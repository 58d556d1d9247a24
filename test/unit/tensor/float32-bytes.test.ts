import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { float32Bytes, float32Vector, reverseWords } from '../../../src/tensor/float32-bytes.ts'
import { floats } from '../oracle.ts'

describe('float32 bytes', () => {
  test('are little-endian', () => {
    expect([...float32Bytes(floats([1, -2]))]).toEqual([0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0])
    expect([...float32Vector(new Uint8Array([0, 0, 0x80, 0x3f]))]).toEqual([1])
  })

  test('go there and back, aligned or not, NaN payloads included', () => {
    fc.assert(
      fc.property(fc.array(fc.float()), fc.nat(7), (values, shift) => {
        const vector = floats(values)
        const bytes = float32Bytes(vector)
        const moved = new Uint8Array(shift + bytes.length)
        moved.set(bytes, shift)
        expect(float32Vector(moved.subarray(shift))).toEqual(vector)
      }),
    )
  })

  test('share memory where they can, and never that of a Buffer’s neighbour', () => {
    const vector = floats([1, 2])
    expect(float32Bytes(vector).buffer).toBe(vector.buffer)
    const aligned = float32Vector(float32Bytes(vector).subarray(4))
    expect(aligned.buffer).toBe(vector.buffer)
    const odd = Buffer.from(new ArrayBuffer(9)).subarray(1)
    const copy = float32Vector(odd)
    odd.fill(0xff)
    expect([...copy]).toEqual([0, 0])
  })

  test('that are no whole elements are refused', () => {
    expect(() => float32Vector(new Uint8Array(7))).toThrow(/7 bytes are no whole number/)
  })

  test('are reversed word by word for machines of the other order', () => {
    expect([...reverseWords(new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]), 4)]).toEqual([
      4, 3, 2, 1, 8, 7, 6, 5,
    ])
    expect([...reverseWords(new Uint8Array([1, 2, 3, 4]), 2)]).toEqual([2, 1, 4, 3])
  })
})
