/**
 * From a manifest to a run that can train: data, weights (stored, a member's, or the initial ones), trainer.
 *
 * What is stored is verified by hash as it is read. What is damaged is fetched again from peers, or replaced by the
 * state of the swarm; it is never trained on.
 */
import { withDeadline } from '../clock.ts'
import { createDataset } from '../data/dataset.ts'
import { createTokenizer } from '../data/tokenizer.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { parseCid } from '../store/content.ts'
import { catchUp, donors } from './catch-up.ts'
import { vectorHash } from './checkpoint.ts'
import { VALIDATION_BATCHES } from './commit.ts'
import { startingStep } from './keep-up.ts'
import type { Chunked } from './manifest.ts'
import { initialOuterState } from './outer-update.ts'
import { NO_WORK } from './overlap.ts'
import { committedRound, publishRecord, type ReadyRun, type RunContext } from './run-context.ts'
import type { RunVectors, StoredState } from './run-store.ts'
import type { Engine, RunTrainer, Trainer, TrainerSpec } from './trainer.ts'
import { isVectorOf, loadBytes, loadVector } from './vector-blobs.ts'

/**
 * Brings everything here that training needs. `sources` are peers that know the run. Throws `blob_unavailable` or
 * `state_corrupt` when nobody who could help is there now; another try may succeed.
 */
export async function prepareRun(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<ReadyRun> {
  await publishRecord(run)
  await meet(run, sources(), signal)
  const spec = await trainerSpec(run, sources, signal)
  const { optimizer, local, ...outer } = await startingVectors(run, sources, signal)
  run.local = local && { ...NO_WORK, ...run.committed?.ahead, parameters: local }
  const trainer = await openTrainer(run, spec, local ?? outer.parameters)
  try {
    if (optimizer.length > 0) await takeOptimizer(run, trainer, optimizer)
    if (run.progress.lossStart === null && trainer.evaluate !== undefined) {
      const { parameters } = outer
      const { loss } = await trainer.evaluate({ parameters, batches: VALIDATION_BATCHES, signal })
      run.progress.lossStart = loss
      run.progress.validationLoss = loss
    }
  } catch (thrown) {
    await trainer.close()
    throw thrown
  }
  return Object.assign(run, { trainer, outer })
}

/** What a donor gave may be of no use: then the optimizer begins cold. */
async function takeOptimizer(
  run: RunContext,
  trainer: RunTrainer,
  optimizer: Uint8Array,
): Promise<void> {
  try {
    await trainer.importOptimizer(optimizer)
  } catch (thrown) {
    const isOwn = run.committed !== undefined
    if (isOwn || asFault(thrown).code !== 'state_corrupt') throw thrown
    run.logger.warn('optimizer_refused', { run: run.id, reason: messageOf(thrown) })
  }
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
    const isEvaluated = run.elements <= LIMITS.evaluatedParameters
    const evaluate = isEvaluated && spec ? engineEvaluation(engine, spec) : undefined
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

/** Learns what known peers know of the run, from all at once: some may be gone. */
async function meet(run: RunContext, peers: string[], outer: AbortSignal): Promise<void> {
  const some = peers.slice(0, LIMITS.groupPeers)
  await withDeadline(run.clock, DEADLINES.rpcMs, 'meeting the members', outer, (signal) =>
    Promise.allSettled(some.map((peer) => run.state.sync(peer, signal))),
  )
}

/** This peer's own text, else the shared one; undefined when there is neither. */
async function loadText(
  run: RunContext,
  shared: Chunked | null,
  sources: () => string[],
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  const own = (await run.store.membership())?.text ?? null
  const text = own ?? shared
  if (text === null) return undefined
  if (own === null) await fetchChunked(run, text, sources, signal)
  const loaded = await unlessDamaged(loadBytes(text, run.blobs))
  if (loaded !== undefined) return loaded
  // What is damaged has been dropped. The shared text may be had from others, one's own is only here.
  if (shared === null || vectorHash(shared) !== vectorHash(text)) {
    throw new ShoalError(
      'state_corrupt',
      'the stored text is damaged: leave the run and join it again with your own text (--data PATH)',
    )
  }
  await fetchChunked(run, text, sources, signal)
  return loadBytes(text, run.blobs)
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
  await run.blobExchange.fetchAll(chunks.map(parseCid), sources, { signal })
}

async function startingVectors(
  run: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<RunVectors> {
  let damage: ShoalError | undefined
  const stored = await run.store.load().catch((thrown: unknown) => {
    damage = asFault(thrown)
    if (damage.code !== 'state_corrupt') throw damage
    run.logger.error('state_corrupt', { run: run.id, reason: damage.message })
  })
  const loaded = stored === undefined ? undefined : await loadStored(run, stored, sources, signal)
  if (loaded !== undefined) return loaded
  const givers = donors(run)
  if (givers.length > 0) {
    // A robust peer takes nothing over that it cannot test.
    const withOptimizer = run.outside === undefined && run.defence === undefined
    const caughtUp = await catchUp(run, givers, signal, { withOptimizer })
    const { optimizer } = caughtUp
    run.progress.outerStep = startingStep(run, caughtUp.checkpoint.outerStep)
    const vectors = fresh(run, caughtUp.parameters)
    return { ...vectors, momentum: caughtUp.momentum ?? vectors.momentum, optimizer }
  }
  if (stored !== undefined || damage !== undefined) throw damagedState()
  const { initial } = run.manifest
  if (!isVectorOf(initial, run.elements)) {
    throw new ShoalError('schema_mismatch', "the manifest's initial weights do not fit its model")
  }
  await fetchChunked(run, initial, sources, signal)
  return fresh(run, await loadVector(initial, run.elements, run.blobs))
}

/** Of a run whose state neither the disk nor a peer can give now. */
export function damagedState(): ShoalError {
  return new ShoalError(
    'state_corrupt',
    'what is stored of the run is damaged: connect to a peer of the run, whose state will take its place, or leave the run and join it again',
  )
}

function fresh(run: RunContext, parameters: Float32Array): RunVectors {
  const outer = initialOuterState(run.manifest.averaging, parameters)
  return { ...outer, optimizer: new Uint8Array() }
}

/** The committed state; undefined when its parameters are damaged and no peer has the very same. */
async function loadStored(
  run: RunContext,
  stored: StoredState,
  sources: () => string[],
  signal: AbortSignal,
): Promise<RunVectors | undefined> {
  restoreProgress(run, stored)
  try {
    const vectors = await run.store.loadVectors(stored, run.elements)
    run.committed = stored
    return vectors
  } catch (thrown) {
    if (!isDamage(thrown)) throw thrown
    run.logger.error('state_corrupt', { run: run.id, reason: messageOf(thrown) })
  }
  const { parameters, momentum, residual, optimizer } = stored
  for (const part of [parameters, momentum]) {
    // In an all-reduce run others have them; in a gossip run those who have just fetched them from here.
    await fetchChunked(run, part, sources, signal).catch(() => {})
    signal.throwIfAborted()
  }
  const whole = await unlessDamaged(loadVector(parameters, run.elements, run.blobs))
  const moving = await unlessDamaged(loadVector(momentum, run.elements, run.blobs))
  const needsMomentum = run.manifest.averaging.rule === 'diloco'
  if (whole === undefined || (needsMomentum && moving === undefined)) return undefined
  const left = residual && (await unlessDamaged(loadVector(residual, run.elements, run.blobs)))
  const inner = await unlessDamaged(loadBytes(optimizer, run.blobs))
  const begin = fresh(run, whole)
  run.logger.warn('state_repaired', {
    run: run.id,
    lost: [
      moving ? [] : 'momentum',
      residual && !left ? 'residual' : [],
      inner ? [] : 'optimizer',
    ].flat(),
  })
  return {
    ...begin,
    momentum: moving ?? begin.momentum,
    residual: left ?? begin.residual,
    optimizer: inner ?? begin.optimizer,
  }
}

/** Whether a blob is missing or not what its name says; anything else is no matter of repair. */
function isDamage(thrown: unknown): boolean {
  const { code } = asFault(thrown)
  return code === 'blob_unavailable' || code === 'state_corrupt'
}

async function unlessDamaged<T>(loading: Promise<T>): Promise<T | undefined> {
  try {
    return await loading
  } catch (thrown) {
    if (isDamage(thrown)) return undefined
    throw thrown
  }
}

function restoreProgress({ progress, defence }: RunContext, stored: StoredState): void {
  progress.outerStep = stored.outerStep
  progress.tokens = stored.tokens
  progress.loss = stored.loss
  progress.lossStart = stored.lossStart
  progress.validationLoss = stored.validationLoss
  progress.rounds = { ...stored.rounds }
  progress.checkpoints = stored.checkpoints
  progress.round = stored.round
  progress.consensusDistance = stored.consensusDistance
  progress.parametersHash = vectorHash(stored.parameters)
  progress.bytesSentBefore = stored.bytesSent
  progress.bytesReceivedBefore = stored.bytesReceived
  defence?.restore(stored.reputations ?? [])
}
