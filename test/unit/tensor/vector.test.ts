import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  addScaled,
  distance,
  dot,
  isFiniteVector,
  norm,
  scaleInPlace,
  slicesOf,
  squaredDistance,
  subtract,
  sumOfSquares,
} from '../../../src/tensor/vector.ts'
import { floats } from '../oracle.ts'

describe('slicesOf', () => {
  test('covers every element once, in order', () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.integer({ min: 1, max: 100 }), (elements, length) => {
        let covered = 0
        for (const [from, to] of slicesOf(elements, length)) {
          expect(from).toBe(covered)
          expect(to - from).toBeLessThanOrEqual(length)
          expect(to).toBeGreaterThan(from)
          covered = to
        }
        expect(covered).toBe(elements)
      }),
    )
  })

  test('are one blob of float32 by default', () => {
    expect([...slicesOf(LIMITS.sliceElements + 1)]).toEqual([
      [0, LIMITS.sliceElements],
      [LIMITS.sliceElements, LIMITS.sliceElements + 1],
    ])
  })
})

describe('sums', () => {
  test('run in float64: a million small elements are not lost', () => {
    const vector = new Float32Array(1_000_001).fill(1e-4)
    vector[0] = 1e2
    const small = Math.fround(1e-4)
    expect(sumOfSquares(vector)).toBeCloseTo(1e4 + 1e6 * small * small, 5)
    expect(norm(floats([3, 4]))).toBe(5)
    expect(norm(floats([3e38, 3e38]))).toBeCloseTo(Math.fround(3e38) * Math.SQRT2, -30)
  })

  test('dot and distance', () => {
    expect(dot(floats([1, 2, 3]), floats([4, 5, 6]))).toBe(32)
    expect(distance(floats([1, 1]), floats([4, 5]))).toBe(5)
    expect(squaredDistance(floats([1, 1]), floats([4, 5]))).toBe(25)
  })

  test('squares add up over slices', () => {
    const vector = Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i))
    let sum = 0
    for (const [from, to] of slicesOf(1000, 64)) sum += sumOfSquares(vector.subarray(from, to))
    expect(sum).toBeCloseTo(sumOfSquares(vector), 10)
  })
})

describe('in place', () => {
  test('every operation rounds to float32', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.float({ noNaN: true }), fc.float({ noNaN: true }))),
        fc.double({ noNaN: true, min: -10, max: 10 }),
        (pairs, factor) => {
          const a = floats(pairs.map(([x]) => x))
          const b = floats(pairs.map(([, y]) => y))
          const { fround } = Math
          const scale = fround(factor)
          const expected = pairs.map(([x, y]) => fround(x + fround(scale * y)))
          expect([...subtract(a, b)]).toEqual(pairs.map(([x, y]) => fround(x - y)))
          const sum = a.slice()
          addScaled(sum, b, factor)
          expect([...sum]).toEqual(expected)
          scaleInPlace(a, factor)
          expect([...a]).toEqual(pairs.map(([x]) => fround(x * scale)))
        },
      ),
    )
  })

  test('subtract writes where it is told to, its inputs included', () => {
    const a = floats([3, 4])
    expect(subtract(a, floats([1, 1]), a)).toBe(a)
    expect([...a]).toEqual([2, 3])
  })

  test('ranges are views', () => {
    const vector = floats([1, 2, 3, 4])
    scaleInPlace(vector.subarray(1, 3), 10)
    expect([...vector]).toEqual([1, 20, 30, 4])
  })
})

describe('isFiniteVector', () => {
  test('finds NaN and infinities anywhere', () => {
    expect(isFiniteVector(new Float32Array(0))).toBe(true)
    expect(isFiniteVector(floats([0, -0, 3.4e38, -1e-45]))).toBe(true)
    for (const bad of [NaN, Infinity, -Infinity]) {
      for (let place = 0; place < 5; place++) {
        const vector = new Float32Array(5)
        vector[place] = bad
        expect(isFiniteVector(vector)).toBe(false)
      }
    }
    expect(isFiniteVector(floats([Infinity, -Infinity]))).toBe(false)
  })
})

test('vectors of different lengths are refused', () => {
  const [two, three] = [new Float32Array(2), new Float32Array(3)]
  for (const operation of [dot, distance, squaredDistance, subtract]) {
    expect(() => operation(two, three)).toThrow(/2 and 3 elements/)
  }
  expect(() => addScaled(two, three, 1)).toThrow(/2 and 3 elements/)
  expect(() => subtract(two, two, three)).toThrow(/2 and 3 elements/)
})
