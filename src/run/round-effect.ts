/** What the result of a round does to a peer: its own tests leave some of it out, the rest moves the outer state. */
import type { Contribution } from './contribution.ts'
import type { Judgement } from './defence.ts'
import { adoptMean, driftOf, isTooFar, type Drift } from './drift.ts'
import { applyRound, takeBack } from './outer-update.ts'
import type { RoundResult } from './round.ts'
import type { ReadyRun } from './run-context.ts'

export interface RoundEffect {
  /** As this peer takes it. */
  result: RoundResult
  /** The swarm's before the update, as far as the round can tell. */
  consensusDistance: number | null
}

/** Moves the outer state by what a round has come to. `own`: what this peer brought. */
export async function takeEffect(
  run: ReadyRun,
  round: RoundResult,
  own: Contribution,
  signal: AbortSignal,
): Promise<RoundEffect> {
  const { result, factors } = await judge(run, round, signal)
  const { contributions } = result
  // From here on what the commit of the step before still reads changes in any case.
  await run.commit
  if (!contributions.includes(own)) await takeBack(run.outer, own, run.clock)
  const drift = await excessiveDrift(run, contributions)
  if (drift === undefined) {
    return { result, consensusDistance: await updateOuterState(run, contributions, factors) }
  }
  run.logger.warn('drifted', { run: run.id, outerStep: run.progress.outerStep, ...drift })
  await adoptMean(run.outer, contributions, run.clock)
  const told = `${(100 * drift.own).toFixed(0)} % away from the group: took its mean over`
  return {
    result: { ...result, reasons: [...result.reasons, told] },
    consensusDistance: drift.own,
  }
}

interface JudgedResult {
  result: RoundResult
  factors?: Judgement['factors']
}

/** The result of a round without what this peer's own tests reject, where the manifest asks for them. */
async function judge(
  { defence, outer, progress, metrics, trainer }: ReadyRun,
  result: RoundResult,
  signal: AbortSignal,
): Promise<JudgedResult> {
  if (defence === undefined) return { result }
  const { contributions, partners, reasons, outcome } = result
  const { evaluate } = trainer
  const { outerStep } = progress
  const judgement = await defence.judge({ outer, outerStep, contributions, evaluate }, signal)
  const { accepted, factors, rejected } = judgement
  for (const { verdict } of rejected) metrics.add('contributions_rejected_total', 1, verdict)
  const told = rejected.map(({ peer, verdict }) => `${peer.slice(-8)}: rejected (${verdict})`)
  const left = partners.filter((partner) => accepted.some(({ peer }) => peer === partner))
  return {
    result: {
      ...result,
      contributions: accepted,
      partners: left,
      outcome: outcome === 'averaged' && left.length === 0 ? 'solo' : outcome,
      reasons: [...reasons, ...told],
    },
    factors,
  }
}

/** Of a gossip peer that should not step from where it is. A robust one has tests of its own, and clips. */
async function excessiveDrift(
  { manifest, defence, self, clock }: ReadyRun,
  contributions: readonly Contribution[],
): Promise<Drift | undefined> {
  const isGossip = manifest.averaging.rule !== 'diloco' && defence === undefined
  if (!isGossip || contributions.length < 2) return undefined
  const drift = await driftOf(contributions, self, clock)
  return isTooFar(drift) ? drift : undefined
}

function updateOuterState(
  { manifest, outer, self, membership, progress, clock }: ReadyRun,
  contributions: readonly Contribution[],
  factors: Judgement['factors'] | undefined,
): Promise<number | null> {
  const { averaging } = manifest
  const swarm = membership.trainers(progress.outerStep).length + 1
  return applyRound({ averaging, outer, self, contributions, factors, swarm }, clock)
}
