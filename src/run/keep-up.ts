/**
 * Staying with the swarm: what a peer does, before its next outer step, that the others have left behind.
 *
 * In gossip runs the outer step is a clock. A peer that has trained as much as the others since they parted (a
 * partition) sets its clock and keeps its parameters: in the next rounds both sides average and nobody's work is lost.
 * One that has done less (it was slow, or away for an hour) mixes its parameters into those of the swarm by the share
 * of its work, down to taking them over. One that has run ahead of many by itself goes back to them. In all-reduce runs,
 * where all hold equal parameters, it replays the rounds it missed, or takes the state of the others over, or, with work
 * of its own, has the next round merge all.
 */
import { abortReason } from '../clock.ts'
import { messageOf } from '../errors.ts'
import type { Member } from '../state/shared-state.ts'
import { catchUp, DONORS_ASKED, type CaughtUp } from './catch-up.ts'
import { commitState } from './commit.ts'
import type { Manifest } from './manifest.ts'
import { REJOIN_SHARE } from './rejoin.ts'
import { replayRounds } from './replay.ts'
import { publishRecord, startFromOuter, type ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'

/** From this share of the others' work on, a peer of a gossip run keeps its parameters: the rounds do the rest. */
const FULL_SHARE = 3 / 4

/** Rejects only when aborted or when storing fails; what cannot be had now is tried again before the next step. */
export async function keepUp(run: ReadyRun, signal: AbortSignal): Promise<void> {
  const { progress, membership, manifest } = run
  const isExact = manifest.averaging.rule === 'diloco'
  if (isExact && membership.lag(progress.outerStep) > 0) await replayRounds(run, signal)
  const front = membership.front(progress.outerStep)
  if (front.length === 0) return
  const isAhead = front.every(({ record }) => record.outerStep < progress.outerStep)
  // Who is ahead of those that have done nothing has done it all; who is behind them was away.
  const share = membership.workSince(front, progress.tokens).share ?? (isAhead ? 1 : 0)
  if (share < (isExact ? REJOIN_SHARE : FULL_SHARE)) {
    const isThere = await resynchronize(run, front, signal, { share: isExact ? 0 : share })
    // Whoever cannot give its state leads nobody, until it is heard of again.
    if (!isThere) for (const { peer } of front.slice(0, DONORS_ASKED)) membership.doubt(peer)
    return
  }
  run.logger.info('clock_set', { run: run.id, from: progress.outerStep, share })
  goTo(run, nextStepOf(front, manifest))
  if (isExact) progress.apart = share
  await commitState(run, signal)
  await publishRecord(run)
}

export interface Resynchronizing {
  /** Of the own parameters, that stays, in gossip runs; default 0. */
  share?: number
  /** A state of an outer step before this one is of no use; default 0. */
  outerStepMin?: number
}

/** Takes the state of `from` over. Whether it did. */
export async function resynchronize(
  run: ReadyRun,
  from: readonly Member[],
  signal: AbortSignal,
  { share = 0, outerStepMin = 0 }: Resynchronizing = {},
): Promise<boolean> {
  if (from.length === 0) return false
  const caughtUp = await catchUp(run, from, signal, { outerStepMin }).catch((thrown: unknown) => {
    if (signal.aborted) throw abortReason(signal)
    // Alone with what it has is better than stopped: before the next outer step it is tried again.
    run.logger.warn('catch_up_failed', { run: run.id, reason: messageOf(thrown) })
  })
  if (caughtUp === undefined) return false
  await run.commit
  await mix(run, caughtUp, share)
  await startFromOuter(run)
  goTo(run, startingStep(run, caughtUp.checkpoint.outerStep))
  run.progress.apart = null
  run.membership.noteInStep(run.progress.outerStep, run.progress.tokens)
  await commitState(run, signal)
  await publishRecord(run)
  return true
}

/** The outer step may be an earlier one. */
function goTo(run: ReadyRun, outerStep: number): void {
  run.progress.outerStep = outerStep
  run.exchange.forgetFrom(outerStep)
}

async function mix(run: ReadyRun, theirs: CaughtUp, share: number): Promise<void> {
  const { parameters, momentum, residual } = run.outer
  for await (const [from, to] of slicesInTurns(parameters.length, run.clock)) {
    for (let i = from; i < to; i++) {
      parameters[i] = share * parameters[i]! + (1 - share) * theirs.parameters[i]!
      momentum[i] = theirs.momentum === null ? share * momentum[i]! : theirs.momentum[i]!
    }
  }
  // It belongs to parameters that are no more.
  residual?.fill(0)
}

/**
 * The outer step at which a peer goes on after taking over a state. In gossip runs the step is only a clock, so the
 * newcomer enters where the swarm is now; in all-reduce runs the state belongs to its step.
 */
export function startingStep(
  run: Pick<ReadyRun, 'manifest' | 'membership'>,
  snapshotStep: number,
): number {
  if (run.manifest.averaging.rule === 'diloco') return snapshotStep
  const front = run.membership.front(snapshotStep)
  return front.length === 0 ? snapshotStep : nextStepOf(front, run.manifest)
}

/**
 * The step in which this peer meets the foremost: not the one they are in the middle of. Whoever enters behind would take
 * what the others have kept, and move towards them while they do not move towards it.
 */
function nextStepOf(front: readonly Member[], { outerSteps }: Manifest): number {
  const foremost = Math.max(...front.map(({ record }) => record.outerStep))
  return Math.min(outerSteps, foremost + 1)
}
