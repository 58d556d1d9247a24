import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { LIMITS } from '../../../src/limits.ts'
import { seededRandom } from '../../../src/random.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import { adoptMean, driftOf, isTooFar } from '../../../src/run/drift.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import { contributionOf } from '../../../src/run/outer-update.ts'

/** More than one slice. */
const ELEMENTS = LIMITS.sliceElements + 1_000
const averaging = averagingSchema.parse({})

function vector(name: string, scale: number): Float32Array {
  const random = seededRandom('drift', name)
  return Float32Array.from({ length: ELEMENTS }, () => scale * random.normal())
}
const center = vector('center', 1)

/** Parameters of a peer that is so far, in shares of the norm, from the center. */
const away = (peer: string, share: number): Float32Array =>
  vector(peer, share).map((value, index) => value + center[index]!)

const give = (peer: string, parameters: Float32Array): Promise<Contribution> =>
  contributionOf(
    {
      averaging,
      outer: { parameters, momentum: new Float32Array(ELEMENTS) },
      peer,
      run: 'run',
      outerStep: 0,
      schemaHash: 'a'.repeat(64),
      weight: 1,
      pseudoGradient: new Float32Array(ELEMENTS),
    },
    systemClock,
  )

async function groupOf(shares: Record<string, number>): Promise<Contribution[]> {
  const given = Object.entries(shares).map(([peer, share]) => give(peer, away(peer, share)))
  return Promise.all(given)
}

async function tooFar(shares: Record<string, number>): Promise<string[]> {
  const group = await groupOf(shares)
  const found: string[] = []
  for (const peer of Object.keys(shares)) {
    if (isTooFar(await driftOf(group, peer, systemClock))) found.push(peer)
  }
  return found
}

describe('a peer is too far from its group', () => {
  test.each([
    ['never where all hold the same', { a: 0, b: 0, c: 0 }, []],
    ['never in a healthy one', { a: 0.01, b: 0.03, c: 0.05, d: 0.02 }, []],
    ['by a quarter of the norm, also of two', { a: 0.2, b: 0.3 }, ['a', 'b']],
    ['by five times what the others are', { a: 0.01, b: 0.01, c: 0.01, d: 0.2 }, ['d']],
    ['but not next to nothing', { a: 0.002, b: 0.002, c: 0.002, d: 0.03 }, []],
  ])('%s', async (_, shares, expected) => {
    expect(await tooFar(shares)).toEqual(expected)
  })

  test('by a distance that is told', async () => {
    const drift = await driftOf(await groupOf({ a: 0.01, b: 0.01, c: 0.3 }), 'c', systemClock)
    expect(drift.own).toBeCloseTo(0.3, 2)
    expect(drift.others).toBeLessThan(0.02)
  })
})

test('it takes the mean over, the same bits as any other, and stands still', async () => {
  const group = await groupOf({ a: 0.01, b: 0.02, c: 0.4 })
  const states = await Promise.all(
    ['a', 'c'].map(async (peer) => {
      const outer = {
        parameters: away(peer, 0.4),
        momentum: vector('momentum', 1),
        residual: vector('residual', 1),
      }
      await adoptMean(outer, group, systemClock)
      return outer
    }),
  )
  const [first, second] = states
  expect(first?.parameters).toEqual(second?.parameters)
  expect(first?.momentum.every((value) => value === 0)).toBe(true)
  expect(first?.residual.every((value) => value === 0)).toBe(true)
  const drift = await driftOf(
    [...group.slice(0, 2), await give('z', first?.parameters ?? center)],
    'z',
    systemClock,
  )
  // A third of the way that one of them was off.
  expect(drift.own).toBeCloseTo(0.4 / 3, 1)
})
