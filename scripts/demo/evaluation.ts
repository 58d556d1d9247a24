/**
 * The merged model: its validation loss, held against what else the same compute could have trained, and a sample of
 * its text.
 *
 * All losses are by the embedded engine on the same held-out batches. One node alone and synchronous data parallel start
 * from the swarm's weights and see the swarm's own batches.
 */
import { readModelFolder, type ModelFolder } from '../../node/cli/model-folder.ts'
import { createEngine } from '../../node/engine/engine.ts'
import { generateText } from '../../node/engine/text-generation.ts'
import { systemClock } from '../../src/clock.ts'
import { createDataset, type Dataset } from '../../src/data/dataset.ts'
import { initialParameters } from '../../src/model/initial-parameters.ts'
import type { RunSpec } from '../../src/run/manifest.ts'
import type { Engine, Trainer, TrainerSpec } from '../../src/run/trainer.ts'

/** Of 768 tokens: most of Moby Dick's held-out tail. */
const VALIDATION_BATCHES = 64
const SAMPLE = { promptTokens: 48, count: 400, temperature: 0.7, topK: 40 }

export interface TrainedRun {
  text: Uint8Array
  /** As the run was created from it; its seed made the initial weights. */
  spec: RunSpec & { seed: string }
  /** Run id: the seed of the batches. */
  id: string
  /** Peer ids: the streams of the batches. */
  peers: readonly string[]
  /** Exported folder of the merged model. */
  modelFolder: string
}

export interface Evaluation {
  /** In nats per token. */
  losses: {
    start: number
    merged: number
    baselines: { alone: number; dataParallel: number } | undefined
  }
  /** The beginning of the held-out text, and how the model goes on. */
  sample: { prompt: string; continuation: string }
  /** What one peer trains on in one inner step. */
  batchTokens: number
}

export interface EvaluationOptions {
  baselines: boolean
  threads: number
  signal: AbortSignal
  /** After every outer step's worth of a baseline's inner steps. */
  onProgress: (baseline: string, outerStep: number) => void
}

export async function evaluateRun(
  run: TrainedRun,
  options: EvaluationOptions,
): Promise<Evaluation> {
  const { validationFraction } = run.spec
  const folder = await readModelFolder(run.modelFolder)
  const { tokenizer, model } = folder
  const dataset = await createDataset(
    run.text,
    { tokenizer, validationFraction, context: model.context },
    { clock: systemClock, signal: options.signal },
  )
  return {
    losses: await measureLosses(run, folder, dataset, options),
    sample: await drawSample(folder, dataset, run.spec.seed, options.signal),
    batchTokens: run.spec.batchSequences * model.context,
  }
}

async function measureLosses(
  { spec, id, peers }: TrainedRun,
  { model, parameters }: ModelFolder,
  dataset: Dataset,
  options: EvaluationOptions,
): Promise<Evaluation['losses']> {
  const { batchSequences, inner, innerSteps, outerSteps, seed } = spec
  const setup = { model, batchSequences, inner, innerSteps, outerSteps, dataset, seed: id }
  const alone: TrainerSpec = { ...setup, streams: peers.slice(0, 1) }
  const dataParallel: TrainerSpec = { ...setup, streams: peers }
  const initial = initialParameters(model, seed)
  const evaluation = { batches: VALIDATION_BATCHES, signal: options.signal }
  const engine = await createEngine({ threads: options.threads })
  const trained = async (baseline: string, trainerSpec: TrainerSpec): Promise<number> =>
    withTrainer(engine, trainerSpec, initial, async (trainer) => {
      for (let outerStep = 0; outerStep < outerSteps; outerStep++) {
        await trainer.innerSteps(outerStep, { signal: options.signal })
        options.onProgress(baseline, outerStep + 1)
      }
      return (await trainer.evaluate(evaluation)).loss
    })
  try {
    const swarm = await withTrainer(engine, alone, initial, async (trainer) => ({
      start: (await trainer.evaluate(evaluation)).loss,
      merged: (await trainer.evaluate({ ...evaluation, parameters })).loss,
    }))
    const baselines = options.baselines
      ? {
          alone: await trained('one node alone', alone),
          dataParallel: await trained('data parallel', dataParallel),
        }
      : undefined
    return { ...swarm, baselines }
  } finally {
    await engine.close()
  }
}

async function withTrainer<T>(
  engine: Engine,
  spec: TrainerSpec,
  parameters: Float32Array,
  work: (trainer: Trainer) => Promise<T>,
): Promise<T> {
  const trainer = await engine.open(spec, parameters)
  try {
    return await work(trainer)
  } finally {
    await trainer.close()
  }
}

async function drawSample(
  { model, tokenizer, parameters }: ModelFolder,
  { validation }: Dataset,
  seed: string,
  signal: AbortSignal,
): Promise<Evaluation['sample']> {
  const { promptTokens, ...sampling } = SAMPLE
  const prompt = validation.subarray(0, Math.min(promptTokens, model.context))
  const tokens = await generateText({
    ...sampling,
    spec: model,
    parameters,
    prompt,
    seed,
    signal,
  })
  return { prompt: tokenizer.decode(prompt), continuation: tokenizer.decode(tokens) }
}
