/** How results are held against the vectors of `test/vectors` (float32 as shortest round-trip decimals). */
import { expect } from 'vitest'

/** The float32 values behind the decimals. */
export function floats(values: readonly number[]): Float32Array {
  return new Float32Array(values)
}

/** |actual - expected| <= atol + rtol * |expected| for every element. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: { rtol: number; atol: number },
): void {
  expect(actual.length).toBe(expected.length)
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!)
    const tolerance = atol + rtol * Math.abs(expected[i]!)
    if (!(difference <= tolerance)) {
      throw new Error(`element ${i}: ${actual[i]} is not ${expected[i]} within ${tolerance}`)
    }
  }
}
