/**
 * Committing a round: parameters, momentum, inner-optimizer state and counters in one atomic step.
 *
 * Hashing and writing run beside the next inner steps; the next round waits for them before it changes the vectors.
 */
import { storeCheckpoint, vectorHash, type Checkpoint } from './checkpoint.ts'
import { bytesReceived, bytesSent, type ReadyRun, type RunContext } from './run-context.ts'
import { CHECKPOINTS_KEPT, type KeptCheckpoint, type StoredState } from './run-store.ts'

/** Validation batches for the loss that is published with a checkpoint. */
export const VALIDATION_BATCHES = 8

/** Starts the commit of the state as it is now; `run.commit` is its end. Evaluates and checkpoints when it is time. */
export async function commitState(
  run: ReadyRun,
  signal: AbortSignal,
  options: { final?: boolean } = {},
): Promise<void> {
  await run.commit
  const { progress, manifest, outer } = run
  const optimizer = await run.trainer.exportOptimizer()
  const isFinal = options.final === true
  const isCheckpoint = isFinal || progress.outerStep % manifest.limits.checkpointEvery === 0
  if (isCheckpoint && run.trainer.evaluate !== undefined) {
    const { loss } = await run.trainer.evaluate({
      parameters: outer.parameters,
      batches: VALIDATION_BATCHES,
      signal,
    })
    progress.validationLoss = loss
    run.emit({ type: 'validation', run: run.id, outerStep: progress.outerStep, loss })
  }
  const work = storeState(run, optimizer, isCheckpoint, isFinal)
  // Whoever awaits `run.commit` sees the failure; until then it must not count as unhandled.
  work.catch(() => {})
  run.commit = work
  // All-reduce peers compare hashes after every step, and a final or first checkpoint is what others wait for.
  if (isCheckpoint || manifest.averaging.rule === 'diloco') await work
}

async function storeState(
  run: ReadyRun,
  optimizer: Uint8Array,
  isCheckpoint: boolean,
  isFinal: boolean,
): Promise<void> {
  const { progress, outer, store } = run
  const { outerStep } = progress
  const counters = {
    tokens: progress.tokens,
    bytesSent: bytesSent(run),
    bytesReceived: bytesReceived(run),
    rounds: { ...progress.rounds },
    lossStart: progress.lossStart,
    loss: progress.loss,
    validationLoss: progress.validationLoss,
  }
  const vectors = await store.storeVectors({ ...outer, optimizer })
  const state: StoredState = {
    version: 1,
    outerStep,
    ...counters,
    ...vectors,
    checkpoints: progress.checkpoints,
    finished: isFinal,
    round: progress.round,
    consensusDistance: progress.consensusDistance,
  }
  if (isCheckpoint) {
    const kept = await publishCheckpoint(run, state, isFinal)
    progress.checkpoints = [
      ...progress.checkpoints.filter(({ cid }) => cid !== kept.cid),
      kept,
    ].slice(-CHECKPOINTS_KEPT)
    state.checkpoints = progress.checkpoints
  }
  await store.commit(state)
  run.committed = state
  progress.parametersHash = vectorHash(state.parameters)
}

async function publishCheckpoint(
  run: RunContext,
  state: StoredState,
  isFinal: boolean,
): Promise<KeptCheckpoint> {
  const cid = await storeCheckpoint(checkpointOf(run, state, isFinal), run.blobs)
  const kept: KeptCheckpoint = { cid: cid.toString(), outerStep: state.outerStep, final: isFinal }
  run.emit({
    type: 'checkpoint',
    run: run.id,
    checkpoint: { ...kept, bytes: state.parameters.bytes },
  })
  return kept
}

/** The checkpoint of a committed state. Momentum travels only where all peers share it. */
export function checkpointOf(run: RunContext, state: StoredState, isFinal: boolean): Checkpoint {
  return {
    version: 1,
    run: run.id,
    outerStep: state.outerStep,
    schemaHash: run.manifest.schemaHash,
    parameters: state.parameters,
    momentum: run.manifest.averaging.rule === 'diloco' && !isFinal ? state.momentum : null,
    final: isFinal,
  }
}

/** How long a snapshot's chunks are kept for the peer that asked for it. */
const SNAPSHOT_KEPT_MS = 120_000

/** A checkpoint of the last committed state for a late joiner; its chunks stay while it is fetched. */
export async function snapshotOf(
  run: RunContext,
  signal: AbortSignal,
): Promise<KeptCheckpoint | undefined> {
  const state = run.committed
  if (state === undefined) return undefined
  const newest = run.progress.checkpoints.at(-1)
  if (newest?.outerStep === state.outerStep) return newest
  const checkpoint = checkpointOf(run, state, false)
  const release = run.store.retain([
    ...checkpoint.parameters.chunks,
    ...(checkpoint.momentum?.chunks ?? []),
  ])
  const cid = await storeCheckpoint(checkpoint, run.blobs)
  const releaseManifest = run.store.retain([cid.toString()])
  // In the background: nobody waits for the end of the grace period.
  void releaseLater(run, [release, releaseManifest], signal)
  return { cid: cid.toString(), outerStep: state.outerStep, final: false }
}

async function releaseLater(
  run: RunContext,
  releases: (() => Promise<void>)[],
  signal: AbortSignal,
): Promise<void> {
  try {
    await run.clock.sleep(SNAPSHOT_KEPT_MS, signal)
    for (const release of releases) await release()
  } catch (thrown) {
    // When the run stops, its blobs stay for the next start.
    if (!signal.aborted)
      run.logger.warn('snapshot_not_released', { run: run.id, reason: String(thrown) })
  }
}
