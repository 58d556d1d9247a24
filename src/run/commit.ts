/**
 * Committing a round: parameters, momentum, inner-optimizer state and counters in one atomic step.
 *
 * Hashing and writing run beside the next inner steps; the next round waits for them before it changes the vectors.
 */
import { encodeCheckpoint, vectorHash, type Checkpoint } from './checkpoint.ts'
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
  const { local, defence } = run
  const vectors = await store.storeVectors({ ...outer, optimizer, local: local?.parameters })
  const state: StoredState = {
    version: 1,
    outerStep,
    ...counters,
    ...vectors,
    ...(local && { ahead: { steps: local.steps, tokens: local.tokens, loss: local.loss } }),
    checkpoints: progress.checkpoints,
    finished: isFinal,
    round: progress.round,
    consensusDistance: progress.consensusDistance,
    ...(defence && { reputations: defence.reputations() }),
  }
  if (isCheckpoint) {
    const kept = await publishCheckpoint(run, state, isFinal)
    progress.checkpoints = [
      ...progress.checkpoints.filter(({ cid }) => cid !== kept.cid),
      kept,
    ].slice(-CHECKPOINTS_KEPT)
    state.checkpoints = progress.checkpoints
  }
  await store.commit(state, () => {
    run.committed = state
    progress.parametersHash = vectorHash(state.parameters)
  })
  await run.snapshots.expire()
}

async function publishCheckpoint(
  run: RunContext,
  state: StoredState,
  isFinal: boolean,
): Promise<KeptCheckpoint> {
  const { cid, bytes } = await encodeCheckpoint(checkpointOf(run, state, isFinal))
  await run.store.blobs.put(cid, bytes)
  const kept: KeptCheckpoint = { cid: cid.toString(), outerStep: state.outerStep, final: isFinal }
  run.emit({
    type: 'checkpoint',
    run: run.id,
    checkpoint: { ...kept, bytes: state.parameters.bytes },
  })
  return kept
}

/** The checkpoint of a committed state. Momentum travels only where all peers share it. */
export function checkpointOf(
  run: Pick<RunContext, 'id' | 'manifest'>,
  state: StoredState,
  isFinal: boolean,
): Checkpoint {
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
