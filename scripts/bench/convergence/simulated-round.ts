/**
 * One round of a simulated swarm: the product's partner choice and round, on an exchange that hands contributions over
 * in memory. A peer that has failed answers nobody.
 */
import { systemClock } from '../../../src/clock.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import type { Averaging } from '../../../src/run/manifest.ts'
import { choosePartners } from '../../../src/run/partners.ts'
import { performRound, type RoundExchange } from '../../../src/run/round.ts'

/** No wait here is longer than that of a busy machine. */
const PATIENCE_MS = 60_000

export interface SimulatedRound {
  averaging: Averaging
  run: string
  outerStep: number
  /** Everyone who is taken for a member, failed peers among them. */
  members: readonly string[]
  /** Of those that have not failed. */
  contributions: readonly Contribution[]
  signal: AbortSignal
}

/** What each peer that has not failed combines: ordered by peer id, the own contribution among them. */
export async function simulateRound(round: SimulatedRound): Promise<Map<string, Contribution[]>> {
  const { averaging, run, outerStep, members, contributions, signal } = round
  const exchange = createMemoryExchange(contributions)
  const combined = contributions.map(async (own): Promise<[string, Contribution[]]> => {
    const self = own.peer
    const others = members.filter((peer) => peer !== self)
    const result = await performRound(exchange(self), systemClock, {
      key: { outerStep, phase: 'outer' },
      own,
      partners: choosePartners({ self, run, averaging }, outerStep, others),
      exact: averaging.rule === 'diloco',
      staleness: 0,
      patienceMs: PATIENCE_MS,
      transferMs: PATIENCE_MS,
      timeoutMs: PATIENCE_MS,
      signal,
    })
    return [self, result.contributions]
  })
  return new Map(await Promise.all(combined))
}

/** The exchange as each peer sees it. */
function createMemoryExchange(
  contributions: readonly Contribution[],
): (peer: string) => RoundExchange {
  const given = new Map(contributions.map((contribution) => [contribution.peer, contribution]))
  const collected = new Map(
    contributions.map(({ peer }) => [peer, Promise.withResolvers<string[]>()]),
  )
  return (self) => ({
    offer() {},
    setCollected: (_key, peers) => collected.get(self)?.resolve([...peers]),
    async pull(peer) {
      const contribution = given.get(peer)
      const times = { waitedMs: null, transferredMs: null }
      if (contribution !== undefined) {
        return { kind: 'contribution', contribution, bytes: 0, ...times }
      }
      const message = 'the peer has failed'
      return { kind: 'refused', refusal: 'unreachable', message, outerStep: null, ...times }
    },
    collectedBy: async (peer) => collected.get(peer)?.promise,
  })
}
