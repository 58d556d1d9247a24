import { describe, expect, test } from 'vitest'
import { roundLimitsSchema } from '../../../src/run/manifest.ts'
import { createPace, planInnerSteps } from '../../../src/run/pace.ts'

/** Nothing below 2 s says anything. */
const limits = roundLimitsSchema.parse({ roundTimeoutMs: 10_000 })
const outerStep = { innerSteps: 20, tokens: 20_000, limits }

function plan(ownRate: number, otherRates: number[], lag = 0) {
  return planInnerSteps({ ownRate, otherRates, lag }, outerStep)
}

describe('inner steps', () => {
  test('alone are all of them, without haste', () => {
    expect(plan(1000, [])).toEqual({ steps: 20, budgetMs: Infinity, targetMs: 0 })
    // Peers that have not trained yet say nothing.
    expect(plan(1000, [0, 0])).toEqual({ steps: 20, budgetMs: Infinity, targetMs: 0 })
  })

  test('of a peer as fast as the others are all, with some time more than they need', () => {
    expect(plan(1000, [1000, 900, 1100])).toEqual({ steps: 20, budgetMs: 22_500, targetMs: 20_000 })
    expect(plan(0, [1000])).toEqual({ steps: 20, budgetMs: 22_500, targetMs: 20_000 })
  })

  test('of a slow peer end when the others are expected to', () => {
    expect(plan(100, [1000, 1000, 1000])).toEqual({ steps: 20, budgetMs: 20_000, targetMs: 20_000 })
    // Of two the faster sets the pace.
    expect(plan(100, [1000]).budgetMs).toBe(20_000)
    expect(plan(1000, [100])).toEqual({ steps: 20, budgetMs: 22_500, targetMs: 20_000 })
  })

  test('of a fast peer are more, twice as many at most', () => {
    expect(plan(1500, [1000, 1000, 1000]).steps).toBe(30)
    expect(plan(10_000, [1000, 1000, 1000]).steps).toBe(40)
    // A little faster is not worth another number.
    expect(plan(1200, [1000, 1000, 1000]).steps).toBe(20)
  })

  test('are the same ones whatever is measured when they take less than the floor', () => {
    for (const rates of [[1], [1e6], [1, 1e6, 3e4]]) {
      const { steps, budgetMs } = planInnerSteps(
        { ownRate: 1e5, otherRates: rates.map((rate) => rate * 1e4), lag: 0 },
        outerStep,
      )
      expect(steps).toBe(20)
      expect(budgetMs).toBeGreaterThanOrEqual(2_000)
    }
  })

  test('of a peer that lags are cut until it has caught up', () => {
    expect(plan(1000, [1000], 1).budgetMs).toBe(11_250)
    expect(plan(1000, [1000], 4).budgetMs).toBe(4_500)
    expect(plan(1000, [1000], 1000).budgetMs).toBe(2_000)
    expect(plan(1000, [1000], -3).budgetMs).toBe(22_500)
  })
})

describe('patience', () => {
  const unhurried = plan(1000, [1000])

  test('is a share of an outer step, and grows with what partners need', () => {
    const pace = createPace(limits)
    expect(pace.patienceMs(plan(1000, []), 0, 0)).toBe(10_000)
    expect(pace.patienceMs(plan(1e5, [1e5]), 0, 0)).toBe(2_000)
    expect(pace.patienceMs(unhurried, 0, 0)).toBe(5_000)
    pace.note({ waitedMs: [3_000, 100, 4_000], transferredMs: [] })
    expect(pace.patienceMs(unhurried, 0, 0)).toBe(6_000)
    pace.note({ waitedMs: [50_000, 50_000, 50_000], transferredMs: [] })
    expect(pace.patienceMs(unhurried, 0, 0)).toBe(8_000)
    pace.note({ waitedMs: [50_000], transferredMs: [] })
    expect(pace.patienceMs(unhurried, 0, 0)).toBe(10_000)
    pace.note({ waitedMs: Array.from({ length: 8 }, () => 10), transferredMs: [] })
    expect(pace.patienceMs(unhurried, 0, 0)).toBe(5_000)
  })

  test('is longer for who finished early, and longer still for who is ahead', () => {
    const pace = createPace(limits)
    expect(pace.patienceMs(unhurried, 3_000, 0)).toBe(8_000)
    expect(pace.patienceMs(unhurried, -3_000, 0)).toBe(5_000)
    expect(pace.patienceMs(unhurried, 0, -1)).toBe(10_000)
    expect(pace.patienceMs(plan(10_000, [10_000]), 0, -1)).toBe(4_500)
  })

  test('with a transfer follows the transfers before', () => {
    const pace = createPace(limits)
    expect(pace.transferMs()).toBe(10_000)
    pace.note({ waitedMs: [], transferredMs: [100, 200, 300] })
    expect(pace.transferMs()).toBe(2_000)
    pace.note({ waitedMs: [], transferredMs: [700, 800, 900] })
    expect(pace.transferMs()).toBe(2_000)
    pace.note({ waitedMs: [], transferredMs: [2_000, 2_000] })
    expect(pace.transferMs()).toBe(2_800)
  })
})
