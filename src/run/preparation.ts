/** From a manifest to a run that can train: data, weights (initial, stored, or a member's), trainer. */
import { createDataset } from '../data/dataset.ts'
import { createTokenizer } from '../data/tokenizer.ts'
import { ShoalError } from '../errors.ts'
import { parseCid } from '../store/content.ts'
import { catchUp, donors } from './catch-up.ts'
import type { Chunked } from './manifest.ts'
import { initialOuterState } from './outer-update.ts'
import { publishRecord, type ReadyRun, type RunContext } from './run-context.ts'
import type { RunVectors, StoredState } from './run-store.ts'
import { VALIDATION_BATCHES } from './commit.ts'
import type { TrainerSpec } from './trainer.ts'
import { isVectorOf, loadBytes, loadVector } from './vector-blobs.ts'

/** Brings everything here that training needs. `sources` are peers that know the run. */
export async function prepareRun(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<ReadyRun> {
  await publishRecord(run)
  for (const peer of sources()) await run.state.sync(peer, signal).catch(() => {})
  const dataset = await createDataset(
    await loadText(run, sources, signal),
    {
      tokenizer: createTokenizer(run.manifest.data.tokenizer),
      validationFraction: run.manifest.data.validationFraction,
      context: run.manifest.model.context,
    },
    { clock: run.clock, signal },
  )
  const stored = await run.store.load()
  const vectors = await startingVectors(run, stored, sources, signal)
  const { manifest } = run
  const spec: TrainerSpec = {
    model: manifest.model,
    batchSequences: manifest.batchSequences,
    inner: manifest.inner,
    innerSteps: manifest.innerSteps,
    outerSteps: manifest.outerSteps,
    dataset,
    streams: [run.self],
    seed: run.id,
  }
  const trainer = await run.engine.open(spec, vectors.parameters)
  if (trainer.schema.size !== run.elements) {
    await trainer.close()
    throw new ShoalError(
      'schema_mismatch',
      'the engine lays the model out in another way than the manifest says',
    )
  }
  const { optimizer, ...outer } = vectors
  if (optimizer.length > 0) await trainer.importOptimizer(optimizer)
  if (run.progress.lossStart === null) {
    const { loss } = await trainer.evaluate({ batches: VALIDATION_BATCHES, signal })
    run.progress.lossStart = loss
    run.progress.validationLoss = loss
  }
  return Object.assign(run, { trainer, outer })
}

async function loadText(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<Uint8Array> {
  const own = (await run.store.membership())?.text
  const text = own ?? run.manifest.data.text
  if (text === null || text === undefined) {
    throw new ShoalError(
      'data_unusable',
      'this run shares no data: join it with your own text (--data PATH)',
    )
  }
  if (own === null || own === undefined) await fetchChunked(run, text, sources, signal)
  return loadBytes(text, run.blobs)
}

async function fetchChunked(
  run: RunContext,
  { chunks }: Chunked,
  sources: () => string[],
  signal: AbortSignal,
): Promise<void> {
  await run.blobExchange.fetchAll(chunks.map(parseCid), sources(), { signal })
}

async function startingVectors(
  run: RunContext,
  stored: StoredState | undefined,
  sources: () => string[],
  signal: AbortSignal,
): Promise<RunVectors> {
  if (stored !== undefined) {
    restoreProgress(run, stored)
    return run.store.loadVectors(stored, run.elements)
  }
  const begin = (parameters: Float32Array): RunVectors => ({
    ...initialOuterState(run.manifest.averaging, parameters),
    optimizer: new Uint8Array(),
  })
  const givers = donors(run)
  if (givers.length > 0) {
    const caughtUp = await catchUp(run, givers, signal)
    run.progress.outerStep = startingStep(run, caughtUp.checkpoint.outerStep)
    const vectors = begin(caughtUp.parameters)
    return { ...vectors, momentum: caughtUp.momentum ?? vectors.momentum }
  }
  const { initial } = run.manifest
  if (!isVectorOf(initial, run.elements)) {
    throw new ShoalError('schema_mismatch', "the manifest's initial weights do not fit its model")
  }
  await fetchChunked(run, initial, sources, signal)
  return begin(await loadVector(initial, run.elements, run.blobs))
}

/**
 * The outer step at which a peer goes on after taking over a state. In gossip runs the step is only a clock, so the
 * newcomer enters where the swarm is now; in all-reduce runs the state belongs to its step.
 */
export function startingStep(run: RunContext, snapshotStep: number): number {
  if (run.manifest.averaging.rule === 'diloco') return snapshotStep
  const steps = run.membership
    .others()
    .filter(({ record }) => record.status === 'training')
    .map(({ record }) => record.outerStep)
  return Math.min(run.manifest.outerSteps, Math.max(snapshotStep, ...steps))
}

function restoreProgress(run: RunContext, stored: StoredState): void {
  const { progress } = run
  progress.outerStep = stored.outerStep
  progress.tokens = stored.tokens
  progress.loss = stored.loss
  progress.lossStart = stored.lossStart
  progress.validationLoss = stored.validationLoss
  progress.rounds = { ...stored.rounds }
  progress.checkpoints = stored.checkpoints
  progress.bytesSentBefore = stored.bytesSent
  progress.bytesReceivedBefore = stored.bytesReceived
  run.committed = stored
}
