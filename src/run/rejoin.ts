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
import type { ReadyRun } from './run-context.ts'

export type Difference =
  | 'none'
  /** The members merge. */
  | 'merge'
  /** This peer takes over the state of the majority. */
  | 'repair'

/** What the members of an agreed set do about their bases. `base` is this peer's. */
export function differenceIn(
  contributions: readonly Contribution[],
  base: string | null,
): Difference {
  const headers = contributions.map(({ header }) => header)
  const majority = headers.find(
    ({ base: candidate }) =>
      2 * headers.filter((header) => header.base === candidate).length > headers.length,
  )
  if (headers.every((header) => header.base === headers[0]?.base)) {
    return majority === undefined || majority.base === base ? 'none' : 'repair'
  }
  if (majority === undefined || headers.some(({ rejoins }) => rejoins)) return 'merge'
  return majority.base === base ? 'none' : 'repair'
}

/** Merges after the outer update of a round. Whether it did: otherwise the next round tries again. */
export async function mergeApart(
  run: ReadyRun,
  contributions: readonly Contribution[],
  tokens: number,
  signal: AbortSignal,
): Promise<boolean> {
  const group = contributions.map(({ peer }) => peer).filter((peer) => peer !== run.self)
  const key = { outerStep: run.progress.outerStep, phase: 'rejoin' } as const
  const merged = await exchangeParameters(run, { key, group, weight: tokens }, signal)
  if (merged.length < 2) return false
  const weights = clampedWeights(merged.map(({ header }) => header.weight))
  run.progress.consensusDistance = await applyMean(run, merged, weights)
  // Each had its own, and all must go on with the same.
  run.outer.momentum.fill(0)
  run.outer.residual?.fill(0)
  run.progress.rejoins = false
  return true
}
