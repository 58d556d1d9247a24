import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { seededRandom } from '../../../src/random.ts'
import {
  contributionPlan,
  encodeContribution,
  type Contribution,
} from '../../../src/run/contribution.ts'
import { averagingSchema, type Averaging } from '../../../src/run/manifest.ts'
import { applyRound, clampedWeights } from '../../../src/run/outer-update.ts'
import { LIMITS } from '../../../src/limits.ts'

/** One whole slice and a bit, so that slices are crossed. */
const ELEMENTS = LIMITS.sliceElements + 100

function vector(...name: (string | number)[]): Float32Array {
  const random = seededRandom(...name)
  return Float32Array.from({ length: ELEMENTS }, () => random.normal() * 0.02)
}

async function contributions(
  averaging: Averaging,
  parametersOf: (peer: string) => Float32Array,
): Promise<Contribution[]> {
  const plan = contributionPlan(averaging, 'outer', [0, ELEMENTS])
  const peers = ['a', 'b', 'c']
  return Promise.all(
    peers.map((peer, index) =>
      encodeContribution(
        {
          peer,
          run: 'run',
          key: { outerStep: 0, phase: 'outer' },
          schemaHash: 'a'.repeat(64),
          weight: 100 * (index + 1),
          plan,
          vectors: { pseudoGradient: vector('gradient', peer), parameters: parametersOf(peer) },
        },
        systemClock,
      ),
    ),
  )
}

const fresh = (parameters: Float32Array): { parameters: Float32Array; momentum: Float32Array } => ({
  parameters: parameters.slice(),
  momentum: new Float32Array(ELEMENTS),
})

describe('applyRound', () => {
  test('diloco: all members end with the same bits, also one whose contribution was left out', async () => {
    const averaging = averagingSchema.parse({ rule: 'diloco' })
    const shared = vector('parameters')
    const group = (await contributions(averaging, () => shared)).slice(0, 2)
    const results = await Promise.all(
      ['a', 'b', 'c'].map(async (self) => {
        const outer = fresh(shared)
        await applyRound({ averaging, outer, self, contributions: group, swarm: 3 }, systemClock)
        return outer
      }),
    )
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
    expect(results[0]?.parameters).not.toEqual(shared)
  })

  test('gossip: a peer uses its exact parameters, and estimates how far apart the swarm is', async () => {
    const averaging = averagingSchema.parse({})
    const parametersOf = (peer: string): Float32Array => vector('parameters', peer)
    const group = await contributions(averaging, parametersOf)
    const outer = fresh(parametersOf('a'))
    const estimate = await applyRound(
      { averaging, outer, self: 'a', contributions: group, swarm: 3 },
      systemClock,
    )
    // Three independent vectors of one norm: rms distance to their mean is sqrt(2/3) of it.
    expect(estimate).toBeGreaterThan(Math.sqrt(2 / 3) * 0.97)
    expect(estimate).toBeLessThan(Math.sqrt(2 / 3) * 1.03)
  })

  test('equal replicas are at distance 0 whatever the codec does to them', async () => {
    const averaging = averagingSchema.parse({})
    const shared = vector('parameters')
    const group = await contributions(averaging, () => shared)
    const outer = fresh(shared)
    const estimate = await applyRound(
      { averaging, outer, self: 'b', contributions: group, swarm: 3 },
      systemClock,
    )
    expect(estimate).toBe(0)
  })

  test('a whole message costs 1.594 bytes per parameter', () => {
    const plan = contributionPlan(averagingSchema.parse({}), 'outer', [0, 1 << 20])
    const bytes = plan.reduce((sum, chunk) => sum + chunk.bytes, 0)
    expect(bytes / (1 << 20)).toBeCloseTo(1.59375, 5)
    expect(Math.max(...plan.map((chunk) => chunk.bytes))).toBeLessThanOrEqual(LIMITS.blobBytes)
  })
})

describe('clampedWeights', () => {
  test('keeps honest weights and bounds boasts, the same for every member', () => {
    expect(clampedWeights([100, 110, 90])).toEqual([100, 110, 90])
    expect(clampedWeights([100, 100, 1e15])).toEqual([100, 100, 200])
    expect(clampedWeights([100, 100, 1])).toEqual([100, 100, 25])
    expect(clampedWeights([7])).toEqual([7])
  })
})
