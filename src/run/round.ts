/**
 * One round: offer the own contribution, pull those of the partners, agree on the set where the rule needs it.
 *
 * Guarantee: it ends within its deadline with a value, never an exception (but the caller's abort). A partner that
 * refuses, dies or stalls costs at most the patience it is given; where members of the group give nothing, the next
 * candidates are asked in their place.
 */
import { abortReason, withDeadline, type Clock } from '../clock.ts'
import { agreedPeers, lackedPeers } from './agreement.ts'
import type { Contribution, RoundKey } from './contribution.ts'
import type { Pulled, PullOptions } from './contribution-pull.ts'
import type { Exchange } from './exchange.ts'
import type { RoundTimes } from './pace.ts'
import type { Partners } from './partners.ts'

export interface RoundResult {
  outcome: 'averaged' | 'solo' | 'stale'
  /** What to combine, ordered by peer id. Holds the own contribution unless the others agreed without it. */
  contributions: Contribution[]
  /** Peers whose contributions are in it, own excluded. */
  partners: string[]
  reasons: string[]
  /** Partners that gave no answer in time, to be doubted in the next rounds. */
  unreachable: string[]
  /** Exact rounds: who combined contributions that this peer lacks, so that theirs is the state to take over. */
  wiser: string[]
  durationMs: number
  times: RoundTimes
}

/** What a round needs of the exchange. */
export type RoundExchange = Pick<Exchange, 'offer' | 'setCollected' | 'pull' | 'collectedBy'>

export interface RoundInput {
  key: RoundKey
  own: Contribution
  partners: Partners
  /** All members must combine the same set (`diloco`, merges): bit-identical results. */
  exact: boolean
  /** How far ahead a partner may be before this peer counts as stale. */
  staleness: number
  /** How long to wait for a partner to be ready. */
  patienceMs: number
  /** How long one contribution may take to arrive. */
  transferMs: number
  /** The whole round. */
  timeoutMs: number
  /** Ends it sooner, with what has come. Not for an exact round, whose members would end with different sets. */
  cut?: AbortSignal | undefined
  signal: AbortSignal
}

/**
 * Peers outside the group that are asked in the place of members that give nothing. Of 8 peers with data of their own,
 * of which 30 % fail unnoticed in each round, whole groups are worth 2 % of the loss.
 */
const CANDIDATES_ASKED = 3
/**
 * Exact rounds: so many patiences more are given to a partner that is still in the round before, where it waits for a
 * silent one in its turn and then for what that has collected.
 */
const LATENESS = 2
/** Others may have begun to wait for a silent partner when this peer had ended; so much longer they may take. */
const AGREEMENT_PATIENCE = 2
/** Share of a round that is left for agreeing on the set: who runs out of time before takes all others for silent. */
const AGREEMENT_SHARE = 1 / 4

export async function performRound(
  exchange: RoundExchange,
  clock: Clock,
  input: RoundInput,
): Promise<RoundResult> {
  const { key, own, exact, timeoutMs, cut, signal } = input
  const startedMs = clock.now()
  exchange.offer(key, own)
  const result = await withDeadline(clock, timeoutMs, 'the round', signal, async (limited) => {
    const collecting = cut === undefined ? limited : AbortSignal.any([limited, cut])
    const collectMs = exact ? (1 - AGREEMENT_SHARE) * timeoutMs : timeoutMs
    const answers = await withDeadline(clock, collectMs, 'collecting', collecting, (ending) =>
      collect(exchange, input, ending),
    )
    const collected = [own, ...contributionsIn(answers)].sort(byPeer)
    const agreed = exact
      ? await agree(exchange, input, collected, answers, limited)
      : { contributions: collected, silent: [], wiser: [] }
    return summary(answers, agreed, input)
  })
  if (signal.aborted) throw abortReason(signal)
  return { ...result, durationMs: clock.now() - startedMs }
}

/** What the group answers, and candidates in the place of members that bring nothing. */
async function collect(
  exchange: RoundExchange,
  { key, own, partners, exact, patienceMs, transferMs }: RoundInput,
  signal: AbortSignal,
): Promise<Map<string, Pulled>> {
  const { plan, header } = own
  const { schemaHash } = header
  const pull = async (peer: string, waits: boolean): Promise<void> => {
    const latenessMs = exact ? LATENESS * patienceMs : 0
    const patience = { patienceMs, latenessMs, transferMs, waits }
    const options: PullOptions = { plan, schemaHash, signal, ...patience }
    const answer = await exchange.pull(peer, key, options)
    // One that stands in, and was still at it when the round was over, is not to blame.
    if (waits || answer.kind === 'contribution' || !signal.aborted) answers.set(peer, answer)
  }
  const answers = new Map<string, Pulled>()
  const { group, candidates } = partners
  await Promise.all(group.map((peer) => pull(peer, true)))
  if (exact) return answers
  const asked = candidates.slice(0, CANDIDATES_ASKED)
  while (asked.length > 0 && !signal.aborted) {
    const missing = group.length - contributionsIn(answers).length
    if (missing === 0) break
    await Promise.all(asked.splice(0, missing).map((peer) => pull(peer, false)))
  }
  return answers
}

interface Agreed {
  contributions: Contribution[]
  /** Peers that gave a contribution and then did not tell what they had collected. */
  silent: string[]
  /** As in the result. */
  wiser: string[]
}

/** The set of contributions that everyone who answers has: each peer states what it collected. */
async function agree(
  exchange: RoundExchange,
  { key, own, patienceMs }: RoundInput,
  collected: Contribution[],
  asked: ReadonlyMap<string, Pulled>,
  signal: AbortSignal,
): Promise<Agreed> {
  const mine = collected.map(({ peer }) => peer)
  exchange.setCollected(key, mine)
  const options = {
    signal,
    patienceMs: AGREEMENT_PATIENCE * patienceMs,
    latenessMs: LATENESS * patienceMs,
  }
  const answers = await Promise.all(
    mine.map(async (peer): Promise<[string, string[] | undefined]> => [
      peer,
      peer === own.peer ? mine : await exchange.collectedBy(peer, key, options),
    ]),
  )
  const silent = answers.filter(([, set]) => set === undefined).map(([peer]) => peer)
  const sets = new Map(answers)
  // What a merge comes to lacks peers at worst, and there is no next round that could repair it.
  const lacked = key.phase === 'outer' ? lackedPeers(sets, own.peer) : []
  await Promise.all(
    lacked.map(async (peer) => {
      // Who has not answered before would not answer now.
      const set = asked.has(peer) ? undefined : await exchange.collectedBy(peer, key, options)
      sets.set(peer, set)
    }),
  )
  const agreed = agreedPeers(sets)
  if (!agreed.every((peer) => mine.includes(peer))) {
    // What is here of it would lead to parameters that nobody else has.
    const wiser = agreed.filter((peer) => mine.includes(peer) && !silent.includes(peer))
    return { contributions: [], silent, wiser }
  }
  const contributions = collected.filter(({ peer }) => agreed.includes(peer))
  return { contributions, silent, wiser: [] }
}

function summary(
  answers: ReadonlyMap<string, Pulled>,
  { contributions, silent, wiser }: Agreed,
  { own, key, staleness }: RoundInput,
): Omit<RoundResult, 'durationMs'> {
  const partners = contributions.map(({ peer }) => peer).filter((peer) => peer !== own.peer)
  const refused = [...answers].flatMap(([peer, pulled]) =>
    pulled.kind === 'refused' ? [{ peer, ...pulled }] : [],
  )
  const isStale = refused.some(
    ({ refusal, outerStep }) =>
      refusal === 'stale' && outerStep !== null && outerStep > key.outerStep + staleness,
  )
  const lost = refused.filter(({ refusal }) => refusal === 'unreachable').map(({ peer }) => peer)
  return {
    outcome: partners.length > 0 ? 'averaged' : isStale ? 'stale' : 'solo',
    contributions: contributions.length > 0 ? contributions : [own],
    partners,
    reasons: [
      ...refused.map(({ peer, refusal, message }) =>
        `${peer.slice(-8)}: ${refusal} (${message})`.slice(0, 160),
      ),
      ...(wiser.length > 0 ? ['lacks what the others have combined: takes their state over'] : []),
    ],
    unreachable: [...lost, ...silent],
    wiser,
    times: {
      waitedMs: timesOf(answers, 'waitedMs'),
      transferredMs: timesOf(answers, 'transferredMs'),
    },
  }
}

function timesOf(
  answers: ReadonlyMap<string, Pulled>,
  which: 'waitedMs' | 'transferredMs',
): number[] {
  return [...answers.values()].flatMap((pulled) => pulled[which] ?? [])
}

function contributionsIn(answers: ReadonlyMap<string, Pulled>): Contribution[] {
  return [...answers.values()].flatMap((pulled) =>
    pulled.kind === 'contribution' ? [pulled.contribution] : [],
  )
}

function byPeer(a: Contribution, b: Contribution): number {
  return a.peer < b.peer ? -1 : 1
}
