/**
 * The port behind which the inner steps happen: the embedded engine, or an outside process.
 *
 * The run never learns what a model is. It hands parameters in, asks for H inner steps, and takes local
 * parameters out; inner-optimizer state stays inside the trainer.
 */
import type { Dataset } from '../data/dataset.ts'
import type { Schema } from '../tensor/schema.ts'
import type { InnerOptimizer, ModelSpec } from './manifest.ts'

/** What a trainer needs to know of a run. */
export interface TrainerSpec {
  model: ModelSpec
  /** Sequences per inner step; each is `model.context` tokens long. */
  batchSequences: number
  inner: InnerOptimizer
  /** H: inner steps of one outer step. */
  innerSteps: number
  /** Outer steps of the whole run; with `innerSteps` the horizon of the learning-rate schedule. */
  outerSteps: number
  dataset: Dataset
  /**
   * Names of the sampler streams; one for a peer of a swarm (its peer id). With several, every inner step
   * averages the gradients of one batch per stream: synchronous data parallel in one process.
   */
  streams: readonly string[]
  /** Seed of the samplers: the run id. */
  seed: string
}

export interface InnerStepsProgress {
  step: number
  loss: number
  tokens: number
}

export interface InnerStepsOptions {
  signal?: AbortSignal | undefined
  /** Number of the first step within the outer step, from 0. */
  from?: number | undefined
  /** How many steps; default those that are left of `innerSteps`. More than those go on with fresh batches. */
  steps?: number | undefined
  /** Stops after the current step, the first at the soonest, and resolves with what is done. */
  enough?: AbortSignal | undefined
  onProgress?: ((progress: InnerStepsProgress) => void) | undefined
  /** Of an outside trainer: it was not heard for a while, or is heard again. Awaited. */
  onSilence?: ((silent: boolean) => Promise<void>) | undefined
}

export interface InnerStepsResult {
  /** Steps done. */
  steps: number
  tokens: number
  /** Mean training loss over the steps, in nats per token. */
  loss: number
}

/** Whoever does the inner steps of a run: a model with its local parameters and its inner optimizer. */
export interface Trainer {
  readonly schema: Schema
  /** A copy of the local parameters, `schema.size` elements. */
  readParameters(): Promise<Float32Array>
  writeParameters(parameters: Float32Array): Promise<void>
  /** Trains on the batches of `outerStep`. Aborting stops after the current step and rejects with the signal's reason. */
  innerSteps(outerStep: number, options?: InnerStepsOptions): Promise<InnerStepsResult>
  /**
   * Loss in nats per token on `batches` fixed batches spread evenly over the validation tokens (the same for every
   * caller), or drawn from them by the name `sample`. Evaluates `parameters` when given, else the local ones; never
   * changes the latter.
   */
  evaluate(options?: {
    parameters?: Float32Array
    batches?: number
    sample?: string
    signal?: AbortSignal
  }): Promise<{ loss: number; tokens: number }>
  /** Inner-optimizer state (moments and step count) as bytes; what `importOptimizer` takes back. */
  exportOptimizer(): Promise<Uint8Array>
  importOptimizer(state: Uint8Array): Promise<void>
  close(): Promise<void>
}

/** What a run needs of its trainer: an outside process need not evaluate anything. */
export type RunTrainer = Omit<Trainer, 'evaluate'> & {
  readonly evaluate?: Trainer['evaluate'] | undefined
}

/** Who does the inner steps of a run on this node: the embedded engine, or a process that speaks to the local API. */
export const TRAINER_KINDS = ['embedded', 'outside'] as const
/** The embedded engine, or an outside process. */
export type TrainerKind = (typeof TRAINER_KINDS)[number]

/** Where trainers are opened: the embedded one runs in a worker thread. */
export interface Engine {
  /** Which backend was chosen and why, for people: `native`, or `wasm` with a reason. */
  readonly backend: string
  /** Compiles the model and takes `parameters` as the local ones. */
  open(spec: TrainerSpec, parameters: Float32Array): Promise<Trainer>
  close(): Promise<void>
}
