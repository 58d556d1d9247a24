import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { contributionBytes, contributionPlan } from '../../../src/run/contribution.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import {
  addWork,
  applyCorrection,
  exchangedRange,
  NO_WORK,
  overlapMax,
  overlapPlan,
} from '../../../src/run/overlap.ts'

const averagingOf = (fields: object) => averagingSchema.parse(fields)

describe('exchangedRange', () => {
  test.each([
    [1, 10_000],
    [2, 10_000],
    [3, 1_001],
    [7, 300_000],
    [64, 100],
  ])('%i fragments of %i elements: each element in one of them, in turn', (fragments, elements) => {
    const manifest = { averaging: averagingOf({ rule: 'diloco', fragments }), outerSteps: 200 }
    const ranges = Array.from({ length: fragments }, (_, step) =>
      exchangedRange(manifest, fragments + step, elements),
    )
    expect(ranges[0]?.[0]).toBe(0)
    expect(ranges.at(-1)?.[1]).toBe(elements)
    for (const [index, [from, to]] of ranges.entries()) {
      expect(from).toBe(ranges[index - 1]?.[1] ?? 0)
      expect(from % 128).toBe(0)
      expect(to).toBeGreaterThanOrEqual(from)
      expect(to - from).toBeLessThanOrEqual(elements / fragments + 128 + (elements % 128))
    }
    expect(exchangedRange(manifest, 0, elements)).toEqual(ranges[0])
    expect(exchangedRange(manifest, 199, elements)).toEqual([0, elements])
  })
})

describe('contributionPlan', () => {
  test('weights that are sent early are not sent again', () => {
    const whole = averagingOf({})
    const early = averagingOf({ overlapSteps: 2 })
    const range = [0, 600_000] as const
    const bytesOf = (averaging: typeof whole, phase: 'outer' | 'weights'): number =>
      contributionBytes(contributionPlan(averaging, phase, range))
    expect(bytesOf(early, 'outer') + bytesOf(early, 'weights')).toBe(bytesOf(whole, 'outer'))
    expect(bytesOf(early, 'outer') / bytesOf(whole, 'outer')).toBeCloseTo(0.5625 / 1.59375, 4)
  })
})

describe('overlapPlan', () => {
  test.each([
    [{}, 20, 20, { steps: 0, latest: 10 }],
    [{ overlapSteps: 5 }, 20, 20, { steps: 5, latest: 10 }],
    // Twice as fast: no more than the manifest says. Four times as slow: in proportion.
    [{ overlapSteps: 5 }, 20, 40, { steps: 5, latest: 10 }],
    [{ overlapSteps: 4 }, 20, 5, { steps: 1, latest: 2 }],
    [{ overlapSteps: 4 }, 20, 1, { steps: 1, latest: 1 }],
    [{ overlapSteps: 4, fragments: 4, rule: 'diloco' }, 5, 5, { steps: 4, latest: 4 }],
  ])('%j of %i inner steps, %i done', (fields, innerSteps, done, expected) => {
    expect(overlapPlan({ averaging: averagingOf(fields), innerSteps }, done)).toEqual(expected)
  })

  test('a quarter of the inner steps between two exchanges at most, and less than a round', () => {
    expect(overlapMax({ averaging: averagingOf({}), innerSteps: 20 })).toBe(5)
    expect(overlapMax({ averaging: averagingOf({}), innerSteps: 3 })).toBe(0)
    const fragments = averagingOf({ rule: 'diloco', fragments: 4 })
    expect(overlapMax({ averaging: fragments, innerSteps: 5 })).toBe(4)
  })
})

describe('applyCorrection', () => {
  const vectorOf = (...values: number[]) => Float32Array.from(values)

  test('keeps the steps done since, and what was not exchanged', async () => {
    const local = vectorOf(1.5, 2.5, 3.5)
    const correction = { noted: vectorOf(1, 2, 3), local, outer: vectorOf(0.5, 3, 9) }
    await applyCorrection({ ...correction, range: [0, 2] }, systemClock)
    expect([...local]).toEqual([1, 3.5, 3.5])
  })

  test('without steps since, takes the outer parameters over bit by bit', async () => {
    const noted = vectorOf(1e8, 1, 2)
    const outer = vectorOf(1e-8, 0.1, 0.2)
    await applyCorrection({ noted, local: noted, outer, range: [0, 2] }, systemClock)
    expect([...noted]).toEqual([...outer.subarray(0, 2), 2])
  })
})

test('work adds up, its loss by steps', () => {
  const work = { steps: 2, tokens: 20, loss: 3, elapsedMs: 5 }
  expect(addWork(NO_WORK, work)).toEqual(work)
  expect(addWork(work, { steps: 6, tokens: 60, loss: 1, elapsedMs: 7 })).toEqual({
    steps: 8,
    tokens: 80,
    loss: 1.5,
    elapsedMs: 12,
  })
})
