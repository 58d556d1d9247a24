/**
 * The inner optimizer: AdamW with PyTorch's semantics (decoupled weight decay before the step, epsilon outside the
 * root), in place over flat vectors, every operation rounded to float32.
 */
import { ShoalError } from '../errors.ts'
import type { Schema } from '../tensor/schema.ts'

/** Warm-up and cosine, the fields of a manifest's `inner`. */
export interface LearningRateSchedule {
  /** Peak. */
  learningRate: number
  /** Inner steps of linear warm-up. */
  warmupSteps: number
  /** Share of the peak at the horizon. */
  finalFraction: number
}

/** The rate of inner step `step` (from 0) of `totalSteps`; stays at the final one past the horizon. */
export function learningRateAt(
  { learningRate, warmupSteps, finalFraction }: LearningRateSchedule,
  step: number,
  totalSteps: number,
): number {
  const warmup = Math.min(1, (step + 1) / Math.max(1, warmupSteps))
  const progress = totalSteps > 0 ? Math.min(1, step / totalSteps) : 1
  const cosine = ((1 - finalFraction) / 2) * (1 + Math.cos(Math.PI * progress))
  return learningRate * warmup * (finalFraction + cosine)
}

/** What scales a gradient of this L2 norm down to `maxNorm` (`torch.nn.utils.clip_grad_norm_`). */
export function gradientClipFactor(gradientNorm: number, maxNorm: number): number {
  return Math.min(1, maxNorm / (gradientNorm + 1e-6))
}

/** Moments are as long as the parameters and start at zero, as does `step`. */
export interface AdamWState {
  /** Steps taken. */
  step: number
  firstMoment: Float32Array
  secondMoment: Float32Array
}

export interface AdamWSettings {
  /** Of this step, see `learningRateAt`. */
  learningRate: number
  beta1: number
  beta2: number
  epsilon: number
  weightDecay: number
}

/**
 * One step, in place on `parameters` and `state`. Decays only the tensors whose schema entry says so.
 * `gradientFactor` scales the gradient on the way in: clipping without a pass over memory.
 */
export function adamwStep(
  parameters: Float32Array,
  gradient: Float32Array,
  state: AdamWState,
  schema: Schema,
  settings: AdamWSettings,
  gradientFactor = 1,
): void {
  for (const vector of [parameters, gradient, state.firstMoment, state.secondMoment]) {
    if (vector.length !== schema.size) {
      throw new ShoalError('internal', `${vector.length} elements are no ${schema.size} parameters`)
    }
  }
  const { learningRate, weightDecay } = settings
  state.step += 1
  const decay = Math.fround(1 - learningRate * weightDecay)
  for (const entry of decayRanges(schema)) {
    updateRange(parameters, gradient, state, settings, {
      ...entry,
      retained: entry.decay ? decay : 1,
      gradientFactor: Math.fround(gradientFactor),
    })
  }
}

interface UpdateRange {
  from: number
  to: number
  /** What decay leaves of a parameter. */
  retained: number
  gradientFactor: number
}

function updateRange(
  parameters: Float32Array,
  gradient: Float32Array,
  { step, firstMoment, secondMoment }: AdamWState,
  settings: AdamWSettings,
  { from, to, retained, gradientFactor }: UpdateRange,
): void {
  const { fround, sqrt } = Math
  const beta1 = fround(settings.beta1)
  const beta2 = fround(settings.beta2)
  const complement1 = fround(1 - settings.beta1)
  const complement2 = fround(1 - settings.beta2)
  const epsilon = fround(settings.epsilon)
  const stepSize = fround(settings.learningRate / (1 - settings.beta1 ** step))
  const correction2 = fround(sqrt(1 - settings.beta2 ** step))
  for (let i = from; i < to; i++) {
    const g = fround(gradient[i]! * gradientFactor)
    const m = fround(fround(firstMoment[i]! * beta1) + fround(g * complement1))
    const v = fround(fround(secondMoment[i]! * beta2) + fround(fround(g * g) * complement2))
    firstMoment[i] = m
    secondMoment[i] = v
    const denominator = fround(fround(fround(sqrt(v)) / correction2) + epsilon)
    parameters[i] = fround(parameters[i]! * retained) - fround(stepSize * fround(m / denominator))
  }
}

/** Neighbouring tensors of equal decay as one range: long loops. */
function decayRanges(schema: Schema): { from: number; to: number; decay: boolean }[] {
  const ranges: { from: number; to: number; decay: boolean }[] = []
  for (const { offset, size, decay } of schema.entries) {
    const last = ranges.at(-1)
    if (last?.decay === decay) last.to = offset + size
    else ranges.push({ from: offset, to: offset + size, decay })
  }
  return ranges
}
