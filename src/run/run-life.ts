/**
 * The life of a run on one node: fetching, waiting, training, merging, finished.
 *
 * It advances in its own loop; network events only change what the loop reads. What may pass (no peer has a blob now,
 * the disk is full, the engine was lost) is told in the view and tried again from the last commit; what cannot ends in
 * the status `failed` with a code and a message. It rejects nothing outward.
 */
import { withDeadline } from '../clock.ts'
import { asFault, type FaultCode, type ShoalError } from '../errors.ts'
import type { Member } from '../state/shared-state.ts'
import { commitState } from './commit.ts'
import { keepUp, resynchronize } from './keep-up.ts'
import { mergeReplicas } from './merge.ts'
import { trainOuterStep, type StepResult } from './outer-step.ts'
import { prepareRun } from './preparation.ts'
import {
  committedRound,
  nextChange,
  publishRecord,
  setStatus,
  standStill,
  type ReadyRun,
  type RunContext,
} from './run-context.ts'

/** A peer that comes looks for the others of its swarm for so long before it trains without them. */
const CONTACT_MS = 5_000
/** Learning from a few peers how far the swarm is. */
const ASK_AROUND_MS = 2_000
const PEERS_ASKED = 4
/** Pauses between attempts; the last one goes on for as long as it takes. */
const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 15_000] as const
/** Faults that another time, or another peer, may mend. */
const PASSING: ReadonlySet<FaultCode> = new Set<FaultCode>([
  'blob_unavailable',
  'peer_unreachable',
  'timeout',
  'storage_failed',
  'state_corrupt',
])
/** A lost engine is started again; an engine that fails at the same place so often will not do better. */
const ENGINE_ATTEMPTS = 3

/** Resolves when the signal fires or the run has failed. `sources` are peers that know the run. */
export async function live(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<void> {
  for (let attempt = 0; !signal.aborted; attempt++) {
    const { committed } = run
    try {
      await advance(run, sources, signal)
      return
    } catch (thrown) {
      if (signal.aborted) return
      await letGo(run)
      const fault = asFault(thrown)
      if (run.committed !== committed) attempt = 0
      const mayPass =
        PASSING.has(fault.code) || (fault.code === 'engine_failed' && attempt + 1 < ENGINE_ATTEMPTS)
      if (!mayPass) {
        await fail(run, fault)
        return
      }
      await pause(run, fault, attempt, signal).catch(() => {})
    }
  }
}

/** Ends the run on this node with a fault that only its user can mend. */
export async function fail(run: RunContext, fault: ShoalError): Promise<void> {
  const { code, message } = fault
  run.outside?.end(fault)
  run.progress.error = { code, message }
  setStatus(run, 'failed')
  run.logger.error('run_failed', { run: run.id, code, message, stack: fault.stack })
  run.emit({ type: 'run_failed', run: run.id, code, message })
  await publishRecord(run).catch(() => {})
}

async function advance(
  context: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<void> {
  setStatus(context, 'fetching')
  const run = await prepareRun(context, sources, signal)
  run.progress.error = null
  if (run.committed === undefined) await commitState(run, signal)
  if (run.committed?.finished !== true) {
    await waitForPeers(run, signal)
    await train(run, signal)
    if (run.leaving.aborted) return
    await finish(run, signal)
  }
  setStatus(run, 'finished')
  await publishRecord(run)
  run.outside?.end()
  await agreeOnFinal(run, signal)
}

/** What the failed attempt held is let go of; the last commit stands. */
async function letGo(run: RunContext): Promise<void> {
  await run.commit.catch(() => {})
  run.commit = Promise.resolve()
  if (run.trainer !== run.outside) await run.trainer?.close().catch(() => {})
  run.trainer = undefined
}

/** Tells what is in the way, then waits: a while, or until there is another peer that may help. */
async function pause(
  run: RunContext,
  { code, message }: ShoalError,
  attempt: number,
  signal: AbortSignal,
): Promise<void> {
  run.progress.error = { code, message }
  setStatus(run, 'fetching')
  run.logger.warn('run_interrupted', { run: run.id, code, message })
  const endsMs = run.clock.now() + (RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)] ?? 0)
  const known = run.membership.others().length
  while (run.clock.now() < endsMs && run.membership.others().length <= known) {
    await nextChange(run, signal)
  }
}

async function train(run: ReadyRun, signal: AbortSignal): Promise<void> {
  await keepUp(run, signal)
  while (run.progress.outerStep < run.manifest.outerSteps && !run.leaving.aborted) {
    signal.throwIfAborted()
    await waitWhilePaused(run, signal)
    if (run.progress.status !== 'training') {
      setStatus(run, 'training')
      await publishRecord(run)
    }
    const startedMs = run.clock.now()
    const result = await trainOuterStep(run, signal)
    await standStill(run, stayInStep(run, result, signal))
    const trainedMs = run.clock.now() - startedMs
    run.progress.trainingMs += trainedMs
    run.metrics.add('training_seconds_total', trainedMs / 1000)
    await settleWithScript(run)
  }
}

/** What a round has shown this peer to lack. */
async function stayInStep(
  run: ReadyRun,
  { outcome, repairFrom }: StepResult,
  signal: AbortSignal,
): Promise<void> {
  if (run.leaving.aborted) return
  if (outcome === 'stale') await askAround(run, signal)
  const { outerStep } = run.progress
  const right = await repairers(run, repairFrom, signal)
  if (run.leaving.aborted) return
  await resynchronize(run, right, signal, { outerStepMin: outerStep })
  await keepUp(run, signal)
}

/** Those of `peers` that have completed the round that this peer has ended: their state before it is of no use. */
async function repairers(run: ReadyRun, peers: string[], outer: AbortSignal): Promise<Member[]> {
  const { membership, progress, manifest, clock } = run
  const ready = (): Member[] =>
    membership
      .others()
      .filter(({ peer, record }) => peers.includes(peer) && record.outerStep >= progress.outerStep)
  if (peers.length === 0) return []
  const { roundTimeoutMs } = manifest.limits
  await withDeadline(clock, roundTimeoutMs, 'repair', outer, async (signal) => {
    while (ready().length === 0 && !signal.aborted && !run.leaving.aborted)
      await nextChange(run, signal).catch(() => {})
  })
  outer.throwIfAborted()
  return ready()
}

/** Tells an outside trainer how its step ended, once nothing can undo it. */
async function settleWithScript({ outside, progress, commit }: ReadyRun): Promise<void> {
  const round = committedRound(progress)
  if (outside === undefined || round === null) return
  await commit
  outside.settle(progress.outerStep, round)
}

/** A partner says that the swarm is further than the records here: they are fetched. */
async function askAround(run: RunContext, outer: AbortSignal): Promise<void> {
  const peers = run.membership.others().map(({ peer }) => peer)
  await withDeadline(run.clock, ASK_AROUND_MS, 'asking around', outer, (signal) =>
    Promise.allSettled(peers.slice(0, PEERS_ASKED).map((peer) => run.state.sync(peer, signal))),
  )
}

/** The merge, or, for a peer that comes when most are done with it, the checkpoint they made. */
async function finish(run: ReadyRun, signal: AbortSignal): Promise<void> {
  const finished = finishedMembers(run)
  const isOver = finished.length > run.membership.mergers().length
  if (isOver && (await resynchronize(run, finished, signal)))
    await commitState(run, signal, { final: true })
  else await mergeReplicas(run, signal)
}

/**
 * Peers that merged apart have come to different final checkpoints: all take the one that most of them hold. Until the
 * signal fires; then it rejects.
 */
async function agreeOnFinal(run: ReadyRun, signal: AbortSignal): Promise<void> {
  for (;;) {
    await nextChange(run, signal)
    const own = run.progress.checkpoints.at(-1)?.cid
    const finished = finishedMembers(run)
    const holdersOf = (cid: string | null): Member[] =>
      finished.filter(({ record }) => record.checkpoint === cid)
    const [most] = finished
      .map(({ record }) => holdersOf(record.checkpoint))
      .sort((a, b) => b.length - a.length)
    if (most === undefined || most.length <= 1 + holdersOf(own ?? null).length) continue
    if (!(await resynchronize(run, most, signal))) continue
    await commitState(run, signal, { final: true })
    await publishRecord(run)
  }
}

function finishedMembers(run: RunContext): Member[] {
  return run.membership.others().filter(({ record }) => record.status === 'finished')
}

/** Until enough peers are there, others have begun, or the manifest's patience ends. */
async function waitForPeers(run: ReadyRun, signal: AbortSignal): Promise<void> {
  const { minPeers, startTimeoutMs } = run.manifest.limits
  const { progress, membership, clock } = run
  const startedMs = clock.now()
  if (progress.outerStep === 0) setStatus(run, 'waiting')
  await publishRecord(run)
  // Whoever has averaged before has a swarm to come back to.
  const contactMs = progress.rounds.averaged > 0 ? Math.min(startTimeoutMs, CONTACT_MS) : 0
  while (membership.others().length === 0 && clock.now() - startedMs < contactMs)
    await nextChange(run, signal)
  let begunMs: number | undefined
  while (progress.outerStep === 0 && clock.now() - startedMs < startTimeoutMs) {
    const others = membership.others()
    const ready = others.filter(
      ({ record }) => record.status === 'waiting' || record.status === 'training',
    )
    if (ready.length + 1 >= minPeers) return
    if (others.some(({ record }) => record.outerStep > 0)) {
      // News of who has begun may come before news of those who began with it; without these the groups would differ.
      if (begunMs === undefined) await askAround(run, signal)
      begunMs ??= clock.now()
      if (clock.now() - begunMs >= CONTACT_MS) return
    }
    await nextChange(run, signal)
  }
}

async function waitWhilePaused(run: RunContext, signal: AbortSignal): Promise<void> {
  while (run.state.board()['paused'] === true) {
    if (run.progress.status !== 'paused') {
      setStatus(run, 'paused')
      await publishRecord(run)
    }
    await nextChange(run, signal)
  }
}
