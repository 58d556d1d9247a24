/** Rounds in memory: who combines what when members of a group fail. */
import { expect, test } from 'vitest'
import { simulateRound } from '../../../scripts/bench/convergence/simulated-round.ts'
import { systemClock } from '../../../src/clock.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import { averagingSchema, type Averaging } from '../../../src/run/manifest.ts'
import { contributionOf } from '../../../src/run/outer-update.ts'
import { performRound, type RoundExchange, type RoundInput } from '../../../src/run/round.ts'
import { choosePartners } from '../../../src/run/partners.ts'
import { createManualClock } from '../../manual-clock.ts'

const ELEMENTS = 8
const PEERS = Array.from({ length: 12 }, (_, index) => `peer-${String(index).padStart(2, '0')}`)
const { signal } = new AbortController()

const give = (averaging: Averaging, peer: string): Promise<Contribution> =>
  contributionOf(
    {
      averaging,
      outer: { parameters: new Float32Array(ELEMENTS), momentum: new Float32Array(ELEMENTS) },
      peer,
      run: 'run',
      outerStep: 0,
      schemaHash: 'a'.repeat(64),
      weight: 100,
      pseudoGradient: new Float32Array(ELEMENTS).fill(1),
    },
    systemClock,
  )

/** Whose contributions each peer combines that has not failed, and the members of its group. */
async function roundWithout(
  averaging: Averaging,
  failed: readonly string[],
): Promise<{ self: string; group: string[]; combined: string[] }[]> {
  const alive = PEERS.filter((peer) => !failed.includes(peer))
  const contributions = await Promise.all(alive.map((peer) => give(averaging, peer)))
  const round = { averaging, run: 'run', outerStep: 0, members: PEERS, contributions, signal }
  return [...(await simulateRound(round))].map(([self, combined]) => {
    const others = PEERS.filter((peer) => peer !== self)
    const { group } = choosePartners({ self, run: 'run', averaging }, 0, others)
    return { self, group: [self, ...group].sort(), combined: combined.map(({ peer }) => peer) }
  })
}

test.each([2, 4])('a whole group of %i combines itself and nobody else', async (groupSize) => {
  const averaging = averagingSchema.parse({ groupSize })
  for (const { group, combined } of await roundWithout(averaging, [])) {
    expect(combined).toEqual(group)
    expect(combined).toHaveLength(groupSize)
  }
})

test.each([
  [2, 1],
  [4, 1],
  [4, 3],
])(
  'in groups of %i others stand in for members that fail (%i of the swarm)',
  async (size, lost) => {
    const averaging = averagingSchema.parse({ groupSize: size })
    const failed = PEERS.slice(0, lost)
    for (const { self, group, combined } of await roundWithout(averaging, failed)) {
      // As many as without failures: of those who live, those of the own group among them.
      expect(combined).toHaveLength(size)
      expect(combined).toContain(self)
      expect(combined.filter((peer) => failed.includes(peer))).toEqual([])
      const living = group.filter((peer) => !failed.includes(peer))
      expect(combined).toEqual(expect.arrayContaining(living))
    }
  },
)

test('an all-reduce round has only its members', async () => {
  const averaging = averagingSchema.parse({ rule: 'diloco' })
  for (const { combined } of await roundWithout(averaging, ['peer-03'])) {
    expect(combined).toEqual(PEERS.filter((peer) => peer !== 'peer-03'))
  }
})

test('who stands in and is still at it when the round is over is not taken for gone', async () => {
  const clock = createManualClock()
  const own = await give(averagingSchema.parse({}), 'self')
  const refused = { kind: 'refused', refusal: 'unreachable', message: '', outerStep: null } as const
  const exchange: RoundExchange = {
    offer: () => {},
    setCollected: () => {},
    collectedBy: async () => undefined,
    async pull(peer, _key, options) {
      if (peer !== 'dead') await clock.sleep(600_000, options.signal).catch(() => {})
      return { ...refused, waitedMs: null, transferredMs: null }
    },
  }
  const round = performRound(exchange, clock, {
    key: { outerStep: 0, phase: 'outer' },
    own,
    partners: { group: ['dead'], candidates: ['slow'] },
    exact: false,
    staleness: 1,
    patienceMs: 600_000,
    transferMs: 600_000,
    timeoutMs: 5_000,
    signal,
  })
  await clock.advance(10_000)
  expect(await round).toMatchObject({ outcome: 'solo', unreachable: ['dead'] })
})

test('a peer that lacks what the others have combined makes nothing of its own of it', async () => {
  const clock = createManualClock()
  const averaging = averagingSchema.parse({ rule: 'diloco' })
  const own = await give(averaging, 'self')
  // It came when `dead` was gone, which the others have had.
  const sets = new Map([
    ['a', ['a', 'b', 'dead']],
    ['b', ['a', 'b', 'dead']],
  ])
  const exchange: RoundExchange = {
    offer: () => {},
    setCollected: () => {},
    collectedBy: async (peer) => sets.get(peer),
    async pull(peer) {
      const times = { waitedMs: null, transferredMs: null }
      if (peer !== 'dead')
        return { kind: 'contribution', contribution: await give(averaging, peer), ...times }
      return { kind: 'refused', refusal: 'unreachable', message: '', outerStep: null, ...times }
    },
  }
  const input: RoundInput = {
    key: { outerStep: 0, phase: 'outer' },
    own,
    partners: { group: ['a', 'b', 'dead'], candidates: [] },
    exact: true,
    staleness: 1,
    patienceMs: 1_000,
    transferMs: 1_000,
    timeoutMs: 5_000,
    signal,
  }
  const result = await performRound(exchange, clock, input)
  expect(result).toMatchObject({ outcome: 'solo', contributions: [own], wiser: ['a', 'b'] })
  // One that is alive, of which this peer did not know, tells what it has: here too little.
  const group = ['a', 'b']
  sets.set('dead', ['dead'])
  const corrected = await performRound(exchange, clock, {
    ...input,
    partners: { group, candidates: [] },
  })
  expect(corrected).toMatchObject({ outcome: 'averaged', partners: group, wiser: [] })
  sets.delete('dead')
  // Where they have not had it, it is as if it had never been.
  sets.set('b', ['a', 'b', 'self'])
  sets.set('a', ['a', 'b', 'self'])
  const whole = await performRound(exchange, clock, input)
  expect(whole).toMatchObject({ outcome: 'averaged', partners: ['a', 'b'], wiser: [] })
})
