/**
 * One round: offer the own contribution, pull those of the partners, agree on the set where the rule needs it.
 *
 * Guarantee: it ends within its deadline with a value, never an exception (but the caller's abort). A partner that
 * refuses, dies or stalls costs at most that deadline; when nobody of the group is left, the next candidates are asked.
 */
import type { Clock } from '../clock.ts'
import type { Contribution, RoundKey, ChunkPlan } from './contribution.ts'
import type { Pulled } from './contribution-pull.ts'
import type { Exchange } from './exchange.ts'
import type { Partners } from './partners.ts'

export interface RoundResult {
  outcome: 'averaged' | 'solo' | 'stale'
  /** What to combine, ordered by peer id. Holds the own contribution unless the others agreed without it. */
  contributions: Contribution[]
  /** Peers whose contributions are in it, own excluded. */
  partners: string[]
  reasons: string[]
  /** Partners that could not be reached, to be doubted in the next rounds. */
  unreachable: string[]
  durationMs: number
}

export interface RoundInput {
  key: RoundKey
  own: Contribution
  partners: Partners
  plan: readonly ChunkPlan[]
  /** All members must combine the same set (`diloco`, merges): bit-identical results. */
  exact: boolean
  /** How far ahead a partner may be before this peer counts as stale. */
  staleness: number
  timeoutMs: number
  signal: AbortSignal
}

/** Share of the deadline for pulling; the rest is for agreeing on the set. */
const PULL_SHARE = 0.75
/** Peers outside the group that are asked when nobody inside answers. */
const CANDIDATES_ASKED = 2

export async function performRound(
  exchange: Exchange,
  clock: Clock,
  input: RoundInput,
): Promise<RoundResult> {
  const { key, own, partners, exact, signal } = input
  const startedMs = clock.now()
  const whole = clock.deadline(input.timeoutMs, 'the round', signal)
  exchange.offer(key, own)
  const pullMs = exact ? input.timeoutMs * PULL_SHARE : input.timeoutMs
  const pulling = clock.deadline(pullMs, 'pulling contributions', signal)
  const answers = await pullFrom(exchange, partners.group, input, pulling, true)
  if (!exact && !hasContribution(answers) && partners.group.length > 0) {
    for (const candidate of partners.candidates.slice(0, CANDIDATES_ASKED)) {
      if (whole.aborted || hasContribution(answers)) break
      for (const [peer, pulled] of await pullFrom(exchange, [candidate], input, whole, false))
        answers.set(peer, pulled)
    }
  }
  signal.throwIfAborted()
  const collected = [own, ...contributionsIn(answers)].sort(byPeer)
  const agreed = exact ? await agree(exchange, key, collected, own.peer, whole) : collected
  signal.throwIfAborted()
  return {
    ...summary(answers, agreed, input),
    durationMs: clock.now() - startedMs,
  }
}

async function pullFrom(
  exchange: Exchange,
  peers: readonly string[],
  { key, plan, own }: RoundInput,
  signal: AbortSignal,
  patient: boolean,
): Promise<Map<string, Pulled>> {
  const { schemaHash } = own.header
  const answers = await Promise.all(
    peers.map(async (peer): Promise<[string, Pulled]> => [
      peer,
      await exchange.pull(peer, key, { plan, schemaHash, signal, patient }),
    ]),
  )
  return new Map(answers)
}

/**
 * The set of contributions that everyone who answers has: each peer states what it collected, all take the
 * intersection. A peer that died after giving its contribution to some but not to all is thereby left out by all.
 */
async function agree(
  exchange: Exchange,
  key: RoundKey,
  collected: Contribution[],
  self: string,
  signal: AbortSignal,
): Promise<Contribution[]> {
  const mine = collected.map(({ peer }) => peer)
  exchange.setCollected(key, mine)
  const sets = await Promise.all(
    mine.filter((peer) => peer !== self).map((peer) => exchange.collectedBy(peer, key, signal)),
  )
  const known = sets.filter((set) => set !== undefined)
  return collected.filter(({ peer }) => known.every((set) => set.includes(peer)))
}

function summary(
  answers: Map<string, Pulled>,
  agreed: Contribution[],
  { own, key, staleness }: RoundInput,
): Omit<RoundResult, 'durationMs'> {
  const partners = agreed.map(({ peer }) => peer).filter((peer) => peer !== own.peer)
  const refused = [...answers].flatMap(([peer, pulled]) =>
    pulled.kind === 'refused' ? [{ peer, ...pulled }] : [],
  )
  const isStale = refused.some(
    ({ refusal, outerStep }) =>
      refusal === 'stale' && outerStep !== null && outerStep > key.outerStep + staleness,
  )
  return {
    outcome: partners.length > 0 ? 'averaged' : isStale ? 'stale' : 'solo',
    contributions: agreed.length > 0 ? agreed : [own],
    partners,
    reasons: refused.map(({ peer, refusal, message }) =>
      `${peer.slice(-8)}: ${refusal} (${message})`.slice(0, 160),
    ),
    unreachable: refused.filter(({ refusal }) => refusal === 'unreachable').map(({ peer }) => peer),
  }
}

function hasContribution(answers: Map<string, Pulled>): boolean {
  return contributionsIn(answers).length > 0
}

function contributionsIn(answers: Map<string, Pulled>): Contribution[] {
  return [...answers.values()].flatMap((pulled) =>
    pulled.kind === 'contribution' ? [pulled.contribution] : [],
  )
}

function byPeer(a: Contribution, b: Contribution): number {
  return a.peer < b.peer ? -1 : 1
}
