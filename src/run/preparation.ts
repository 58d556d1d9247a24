/** From a manifest to a run that can train: data, weights (initial, stored, or a member's), trainer. */
import { createDataset } from '../data/dataset.ts'
import { createTokenizer } from '../data/tokenizer.ts'
import { ShoalError } from '../errors.ts'
import { parseCid } from '../store/content.ts'
import { catchUp, donors } from './catch-up.ts'
import type { Chunked } from './manifest.ts'
import { initialOuterState } from './outer-update.ts'
import { committedRound, publishRecord, type ReadyRun, type RunContext } from './run-context.ts'
import type { RunVectors, StoredState } from './run-store.ts'
import { VALIDATION_BATCHES } from './commit.ts'
import type { Engine, RunTrainer, Trainer, TrainerSpec } from './trainer.ts'
import { isVectorOf, loadBytes, loadVector } from './vector-blobs.ts'

/** Brings everything here that training needs. `sources` are peers that know the run. */
export async function prepareRun(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<ReadyRun> {
  await publishRecord(run)
  for (const peer of sources()) await run.state.sync(peer, signal).catch(() => {})
  const spec = await trainerSpec(run, sources, signal)
  const stored = await run.store.load()
  const vectors = await startingVectors(run, stored, sources, signal)
  const { optimizer, ...outer } = vectors
  const trainer = await openTrainer(run, spec, outer.parameters)
  if (optimizer.length > 0) await trainer.importOptimizer(optimizer)
  if (run.progress.lossStart === null && trainer.evaluate !== undefined) {
    const { parameters } = outer
    const { loss } = await trainer.evaluate({ parameters, batches: VALIDATION_BATCHES, signal })
    run.progress.lossStart = loss
    run.progress.validationLoss = loss
  }
  return Object.assign(run, { trainer, outer })
}

/** What the embedded engine needs; undefined for a model or a text that only an outside trainer has. */
async function trainerSpec(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<TrainerSpec | undefined> {
  const { manifest } = run
  const { model, data } = manifest
  if (model.kind === 'external' || data === null) return undefined
  const text = await loadText(run, data.text, sources, signal)
  if (text === undefined) return undefined
  const dataset = await createDataset(
    text,
    {
      tokenizer: createTokenizer(data.tokenizer),
      validationFraction: data.validationFraction,
      context: model.context,
    },
    { clock: run.clock, signal },
  )
  return {
    model,
    batchSequences: manifest.batchSequences,
    inner: manifest.inner,
    innerSteps: manifest.innerSteps,
    outerSteps: manifest.outerSteps,
    dataset,
    streams: [run.self],
    seed: run.id,
  }
}

async function openTrainer(
  run: RunContext,
  spec: TrainerSpec | undefined,
  parameters: Float32Array,
): Promise<RunTrainer> {
  const { outside, engine, progress } = run
  if (outside !== undefined) {
    const evaluate = spec === undefined ? undefined : engineEvaluation(engine, spec)
    const { outerStep } = progress
    await outside.begin({ outerStep, parameters }, { evaluate, round: committedRound(progress) })
    return outside
  }
  if (spec === undefined) throw noData()
  const trainer = await engine.open(spec, parameters)
  if (trainer.schema.size !== run.elements) {
    await trainer.close()
    throw new ShoalError(
      'schema_mismatch',
      'the engine lays the model out in another way than the manifest says',
    )
  }
  return trainer
}

/** The engine's memory is held for the evaluation only: between two of them the machine is the outside trainer's. */
function engineEvaluation(engine: Engine, spec: TrainerSpec): Trainer['evaluate'] {
  return async ({ parameters, ...options } = {}) => {
    if (parameters === undefined) throw new ShoalError('internal', 'nothing to evaluate')
    const trainer = await engine.open(spec, parameters)
    try {
      return await trainer.evaluate(options)
    } finally {
      await trainer.close()
    }
  }
}

/** This peer's own text, else the shared one; undefined when there is neither. */
async function loadText(
  run: RunContext,
  shared: Chunked | null,
  sources: () => string[],
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  const own = (await run.store.membership())?.text ?? null
  if (own !== null) return loadBytes(own, run.blobs)
  if (shared === null) return undefined
  await fetchChunked(run, shared, sources, signal)
  return loadBytes(shared, run.blobs)
}

/** Of a peer that is to train without a text. */
export function noData(): ShoalError {
  return new ShoalError(
    'data_unusable',
    'this run shares no data: join it with your own text (--data PATH)',
  )
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
  progress.round = stored.round
  progress.consensusDistance = stored.consensusDistance
  progress.bytesSentBefore = stored.bytesSent
  progress.bytesReceivedBefore = stored.bytesReceived
  run.committed = stored
}
