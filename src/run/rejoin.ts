/**
 * How all-reduce peers whose outer parameters differ come to hold equal ones again.
 *
 * Every contribution names the hash of the parameters that it starts from, and all members of a round combine one agreed
 * set, so all see the same hashes and decide alike, without another message:
 * - one peer whose hash differs from that of a strict majority takes the majority's state over;
 * - where there is no such majority, or peers come back from a time apart (a partition), all members exchange their
 *   parameters and take the mean, weighted by tokens: nobody's work is lost, nobody is the winner.
 */
import type { Contribution } from './contribution.ts'
import { applyMean, exchangeParameters } from './merge.ts'
import { clampedWeights } from './outer-update.ts'
import { leastPatienceMs } from './pace.ts'
import type { ReadyRun } from './run-context.ts'

/** A peer that has done less than this share of the others' work since they parted gives its parameters up. */
export const REJOIN_SHARE = 1 / 4
/** So many outer steps of work since then are of a time apart; fewer are of a fault in the last rounds. */
const STEPS_APART = 3

/** What the members of an agreed set see in their bases: all see the same. */
type Difference = 'none' | 'merge' | 'majority'

function differenceIn(contributions: readonly Contribution[]): Difference {
  const headers = contributions.map(({ header }) => header)
  if (headers.every(({ base }) => base === headers[0]?.base)) return 'none'
  const hasMajority = headers.some(
    ({ base }) => 2 * headers.filter((header) => header.base === base).length > headers.length,
  )
  return hasMajority && headers.every(({ rejoins }) => !rejoins) ? 'majority' : 'merge'
}

export interface Reconciled {
  /** Whether the parameters are now the mean of those of all members. */
  merged: boolean
  /** Peers whose parameters are this one's. */
  together: string[]
  /** Members of the majority, whose state this peer should take over; empty when it need not. */
  repairFrom: string[]
}

/** After the outer update of a round: sees to it that the members hold equal parameters, now or in the next rounds. */
export async function reconcile(
  run: ReadyRun,
  contributions: readonly Contribution[],
  { base, tokens }: { base: string | null; tokens: number },
  signal: AbortSignal,
): Promise<Reconciled> {
  const { progress, membership, self } = run
  const peers = contributions.map(({ peer }) => peer)
  const isTogether = ({ header }: Contribution): boolean => header.base === base
  const together = contributions.filter(isTogether).map(({ peer }) => peer)
  if (differenceIn(contributions) === 'merge' && peers.includes(self)) {
    const merged = await mergeApart(run, peers, tokens, signal)
    return { merged, together: merged ? peers : together, repairFrom: [] }
  }
  if (2 * together.length > peers.length) {
    if (peers.length > 1) progress.apart = null
    return { merged: false, together, repairFrom: [] }
  }
  // The others have averaged from other parameters, with this peer's contribution or without.
  const others = new Set(peers.filter((peer) => !together.includes(peer)))
  const members = membership.others().filter(({ peer }) => others.has(peer))
  const work = membership.workSince(members, progress.tokens)
  const { share } = work
  const wasApart = (share ?? 0) >= REJOIN_SHARE && work.tokens >= STEPS_APART * tokens
  if (wasApart) progress.apart = share
  return { merged: false, together, repairFrom: wasApart ? [] : majorityIn(contributions) }
}

/** The peers whose base most members share. */
function majorityIn(contributions: readonly Contribution[]): string[] {
  const holdersOf = (base: string | null): Contribution[] =>
    contributions.filter(({ header }) => header.base === base)
  const [most = []] = contributions
    .map(({ header }) => holdersOf(header.base))
    .sort((a, b) => b.length - a.length)
  return most.map(({ peer }) => peer)
}

/** Merges the parameters of `peers` and this one. Whether it did: otherwise the next round tries again. */
async function mergeApart(
  run: ReadyRun,
  peers: readonly string[],
  tokens: number,
  signal: AbortSignal,
): Promise<boolean> {
  const group = peers.filter((peer) => peer !== run.self)
  const key = { outerStep: run.progress.outerStep, phase: 'rejoin' } as const
  const weight = Math.max(1, Math.round(tokens * (run.progress.apart ?? 1)))
  // All have just ended the same round.
  const patienceMs = leastPatienceMs(run.manifest.limits)
  const merged = await exchangeParameters(run, { key, group, weight, patienceMs }, signal)
  if (merged.length < 2) return false
  const weights = clampedWeights(merged.map(({ header }) => header.weight))
  run.progress.consensusDistance = await applyMean(run, merged, weights)
  // Each had its own, and all must go on with the same.
  run.outer.momentum.fill(0)
  run.outer.residual?.fill(0)
  run.progress.apart = null
  return true
}
