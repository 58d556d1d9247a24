/**
 * One model in training, inside the engine's worker: gradients by onnxruntime, AdamW on the same flat vectors.
 *
 * Deterministic: the same spec, parameters and optimizer state give the same bits, whatever the number of threads.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { abortReason } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { evaluationGraph, gptSchema, gradientName, trainingGraph } from '../../src/model/gpt.ts'
import {
  createSimdAdamW,
  createTrainingMemory,
  trainingVectors,
  type SimdAdamW,
  type TrainingVectors,
} from '../../src/optim/adamw-simd.ts'
import { gradientClipFactor, learningRateAt, restartFactor } from '../../src/optim/inner.ts'
import type { InnerStepsProgress, InnerStepsResult, TrainerSpec } from '../../src/run/trainer.ts'
import { addScaled, norm } from '../../src/tensor/vector.ts'
import { createBatch, type Batch } from './batch.ts'
import type { Target } from './messages.ts'
import { decodeOptimizerState, encodeOptimizerState } from '../../src/optim/optimizer-state.ts'
import { vectorBindings, type Program, type Runtime } from './runtime.ts'

export interface TrainingSession {
  innerSteps(
    range: { outerStep: number; from: number; steps: number },
    options: {
      signal: AbortSignal
      enough: AbortSignal
      onProgress: (progress: InnerStepsProgress) => void
    },
  ): Promise<InnerStepsResult>
  /** A copy of the local parameters. */
  read(): Float32Array<ArrayBuffer>
  write(target: Target, offset: number, values: Float32Array): void
  /** Parameters written to be evaluated are dropped afterwards. */
  evaluate(
    evaluation: { target: Target; batches: number; sample?: string | undefined },
    signal: AbortSignal,
  ): Promise<{ loss: number; tokens: number }>
  exportOptimizer(): Uint8Array<ArrayBuffer>
  importOptimizer(state: Uint8Array): void
  close(): Promise<void>
}

/** At most ten progress reports a second. */
const PROGRESS_INTERVAL_MS = 100

/** Starts with parameters and optimizer state zero. Throws `data_unusable`, `spec_invalid` or `engine_failed`. */
export async function openTrainingSession(
  runtime: Runtime,
  spec: TrainerSpec,
): Promise<TrainingSession> {
  const schema = gptSchema(spec.model)
  const memory = createTrainingMemory(schema.size)
  const vectors = trainingVectors(memory, schema.size)
  const batch = createBatch(spec)
  const tokensPerStep = batch.tokens * spec.streams.length
  const optimizer = { step: 0, ...vectors }
  const program = await runtime.open(trainingGraph(spec.model, spec.batchSequences))
  const adamw = createSimdAdamW(memory, schema, optimizer)
  const innerStep = createInnerStep(spec, batch, program, optimizer, adamw)
  /** Opened when first asked for: many trainers never evaluate. */
  let evaluation: Program | undefined
  let evaluated: Float32Array | undefined

  return {
    read: () => vectors.parameters.slice(),
    write(target, offset, values) {
      if (target === 'evaluated') evaluated ??= new Float32Array(schema.size)
      const vector = target === 'local' ? vectors.parameters : evaluated
      vector?.set(values, offset)
    },
    async innerSteps({ outerStep, from, steps }, { signal, enough, onProgress }) {
      let total = 0
      let done = 0
      let reportedAt = performance.now()
      while (done < steps && !(enough.aborted && done > 0)) {
        await yieldTo(signal)
        const loss = await innerStep(outerStep, from + done)
        total += loss
        done += 1
        const now = performance.now()
        if (now - reportedAt < PROGRESS_INTERVAL_MS) continue
        reportedAt = now
        onProgress({ step: from + done, loss, tokens: done * tokensPerStep })
      }
      return { steps: done, tokens: done * tokensPerStep, loss: done === 0 ? 0 : total / done }
    },
    async evaluate({ target, batches, sample }, signal) {
      const parameters = target === 'local' ? vectors.parameters : evaluated
      evaluated = undefined
      if (parameters === undefined) throw new ShoalError('internal', 'nothing to evaluate')
      evaluation ??= await runtime.open(evaluationGraph(spec.model, spec.batchSequences))
      const inputs = { ...batch.inputs, ...vectorBindings(schema, parameters) }
      const computeLoss = evaluation.bind(inputs, batch.outputs)
      let total = 0
      for (let index = 0; index < batches; index += 1) {
        await yieldTo(signal)
        batch.fillValidation(index, batches, sample)
        total += await batch.lossOf(computeLoss)
      }
      return { loss: total / batches, tokens: batches * batch.tokens }
    },
    exportOptimizer: () => encodeOptimizerState(optimizer, schema),
    importOptimizer: (state) => decodeOptimizerState(state, optimizer, schema),
    async close() {
      await program.close()
      await evaluation?.close()
    },
  }
}

/** One inner step: the gradient averaged over the streams, clipped, then AdamW. Returns the mean loss. */
function createInnerStep(
  spec: TrainerSpec,
  batch: Batch,
  program: Program,
  optimizer: TrainingVectors & { step: number },
  adamw: SimdAdamW,
): (outerStep: number, innerStep: number) => Promise<number> {
  const { streams, seed, inner, innerSteps, outerSteps } = spec
  const schema = gptSchema(spec.model)
  const { gradient, parameters } = optimizer
  const sum = streams.length > 1 ? new Float32Array(schema.size) : undefined
  const computeGradient = program.bind(
    { ...batch.inputs, ...vectorBindings(schema, parameters) },
    { ...batch.outputs, ...vectorBindings(schema, gradient, gradientName) },
  )
  return async (outerStep, innerStep) => {
    let loss = 0
    for (const [index, stream] of streams.entries()) {
      batch.fillTraining({ seed, stream, outerStep, innerStep })
      loss += (await batch.lossOf(computeGradient)) / streams.length
      if (index === 0) sum?.set(gradient)
      else if (sum !== undefined) addScaled(sum, gradient, 1)
    }
    if (sum !== undefined) gradient.set(sum)
    const gradientNorm = norm(gradient) / streams.length
    if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
      throw new ShoalError(
        'engine_failed',
        `training diverged in outer step ${outerStep}: lower the inner learning rate`,
      )
    }
    const step = outerStep * innerSteps + innerStep
    const learningRate =
      learningRateAt(inner, step, innerSteps * outerSteps) * restartFactor(optimizer.step, step)
    adamw(
      { ...inner, learningRate },
      gradientClipFactor(gradientNorm, inner.clipNorm) / streams.length,
    )
    return loss
  }
}

/** The WebAssembly build computes without yielding: a cancellation, or another trainer, must get in between. */
async function yieldTo(signal: AbortSignal): Promise<void> {
  await nextTurn()
  if (signal.aborted) throw abortReason(signal)
}
