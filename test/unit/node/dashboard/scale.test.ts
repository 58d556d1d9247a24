import { assert, double, integer, property } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { linearScale, logScale, niceTicks, spanScale } from '../../../../node/dashboard/scale.js'

const value = double({ min: -1e9, max: 1e9, noNaN: true })

describe('ticks', () => {
  test('are few, round, in order and within', () => {
    assert(
      property(value, value, integer({ min: 2, max: 12 }), (a, b, count) => {
        const [low, high] = [Math.min(a, b), Math.max(a, b)]
        if (!(high - low > 1e-6)) return
        const ticks = niceTicks(low, high, count)
        expect(ticks.length).toBeGreaterThan(0)
        expect(ticks.length).toBeLessThanOrEqual(count + 1)
        const slack = (high - low) * 1e-6
        for (const [index, tick] of ticks.entries()) {
          expect(tick).toBeGreaterThanOrEqual(low - slack)
          expect(tick).toBeLessThanOrEqual(high + slack)
          if (index > 0) expect(tick).toBeGreaterThan(ticks[index - 1] ?? Infinity)
        }
      }),
    )
    expect(niceTicks(0, 10, 5)).toEqual([0, 2, 4, 6, 8, 10])
    expect(niceTicks(3, 3, 5)).toEqual([3])
  })
})

describe('scales', () => {
  test('put every value into their range, also when all are equal', () => {
    for (const values of [[1, 2, 3], [5], [0, 0], [-3, 7], [1e-9, 1e9]]) {
      const { place } = linearScale(values, [100, 0], 4)
      for (const each of values) {
        expect(place(each)).toBeGreaterThanOrEqual(0)
        expect(place(each)).toBeLessThanOrEqual(100)
      }
    }
    const { place } = spanScale(10, 20, [0, 100], 5)
    expect([place(10), place(15), place(20)]).toEqual([0, 50, 100])
    expect(spanScale(4, 4, [0, 100], 5).place(4)).toBe(0)
  })

  test('are logarithmic only for values above 0 over more than a decade', () => {
    expect(logScale([1, 2], [0, 1])).toBeUndefined()
    expect(logScale([0, 100], [0, 1])).toBeUndefined()
    const scale = logScale([0.002, 0.05], [100, 0])
    expect(scale?.ticks.map((tick) => tick.toPrecision(1))).toEqual([
      '0.002',
      '0.005',
      '0.01',
      '0.02',
      '0.05',
    ])
    const [low = 0, middle = 0, high = 0] = [0.002, 0.01, 0.05].map((each) => scale?.place(each))
    expect(low).toBeCloseTo(100 - 100 / 22)
    expect(middle).toBeCloseTo(50)
    expect(high).toBeCloseTo(100 / 22)
    const wide = logScale([0.002, 50], [100, 0])
    expect(wide?.ticks).toEqual([0.01, 0.1, 1, 10])
  })
})
