import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { fromHalves, isFiniteHalf, toHalves } from '../../../src/codec/float16.ts'

/** The value of 16 bits by the definition of IEEE 754. */
function valueOf(half: number): number {
  const sign = half >>> 15 === 0 ? 1 : -1
  const exponent = (half >>> 10) & 31
  const fraction = half & 1023
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN
  return exponent === 0
    ? sign * fraction * 2 ** -24
    : sign * (1024 + fraction) * 2 ** (exponent - 25)
}

const allHalves = Uint16Array.from({ length: 1 << 16 }, (_, half) => half)

describe('halves', () => {
  test('have the values of the standard, all of them', () => {
    const values = new Float32Array(1 << 16)
    fromHalves(allHalves, values)
    for (const half of allHalves) expect(Object.is(values[half], valueOf(half))).toBe(true)
  })

  test('come back from their values, all that are numbers', () => {
    const numbers = allHalves.filter((half) => !Number.isNaN(valueOf(half)))
    expect(toHalves(Float32Array.from(numbers, valueOf))).toEqual(numbers)
  })

  test('are the nearest to any value, with ties to even', () => {
    const float = fc.float({ noNaN: true, noDefaultInfinity: true, min: -65_504, max: 65_504 })
    fc.assert(
      fc.property(
        fc.oneof(
          float,
          float.map((value) => Math.fround(value * 2 ** -20)),
        ),
        (value) => {
          const [half = 0] = toHalves(Float32Array.of(value))
          const error = Math.abs(valueOf(half) - value)
          for (const neighbour of [half - 1, half + 1]) {
            const other = Math.abs(valueOf(neighbour & 0xffff) - value)
            if (Number.isNaN(other) || (half & 0x7fff) + neighbour - half < 0) continue
            expect(error).toBeLessThanOrEqual(other)
            if (error === other) expect(half % 2).toBe(0)
          }
        },
      ),
      { numRuns: 5000 },
    )
  })

  test('round halfway up or down to even at every step', () => {
    for (let half = 0; half < 0x7bff; half++) {
      const middle = Float32Array.of((valueOf(half) + valueOf(half + 1)) / 2)
      expect(toHalves(middle)[0]).toBe(half + (half % 2))
    }
  })

  test('have no number for what is too large or none', () => {
    for (const value of [65_520, 1e6, 3e38, Infinity, -Infinity, NaN]) {
      const [half = 0] = toHalves(Float32Array.of(value))
      expect(isFiniteHalf(half)).toBe(false)
    }
    expect([...toHalves(Float32Array.of(65_519.996, -65_504, -0))]).toEqual([
      0x7bff, 0xfbff, 0x8000,
    ])
  })

  // Beside the arithmetic above, where the platform has the type.
  test.runIf('Float16Array' in globalThis)('are those of the platform', () => {
    const random = Float32Array.from(
      { length: 100_000 },
      (_, i) => Math.sin(i * i) * 2 ** ((i % 40) - 25),
    )
    const platform = new Uint16Array(new Float16Array(random).buffer)
    expect(toHalves(random)).toEqual(platform)
  })
})
