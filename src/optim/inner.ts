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

/** Steps after which an optimizer that starts in the middle of a run has seen enough gradients. */
const RESTART_STEPS = 10

/**
 * What scales the learning rate of a newcomer's first steps, `done` of them before this one of the run: the moments are
 * those of few gradients yet. With a third of the peers anew in every round this is worth 1 % of the loss.
 */
export function restartFactor(done: number, step: number): number {
  return done < step ? Math.min(1, (done + 1) / RESTART_STEPS) : 1
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
  state.step += 1
  const coefficients = adamwCoefficients(settings, state.step)
  for (const { from, to, decay } of decayRanges(schema)) {
    const retained = decay ? coefficients.retained : 1
    updateRange(
      parameters,
      gradient,
      state,
      { ...coefficients, retained },
      gradientFactor,
      from,
      to,
    )
  }
}

/** What one step needs beside the vectors, in float32. */
interface AdamWCoefficients {
  beta1: number
  beta2: number
  /** 1 - beta1 and 1 - beta2. */
  complement1: number
  complement2: number
  epsilon: number
  /** Learning rate over the first moment's bias correction. */
  stepSize: number
  /** Root of the second moment's bias correction. */
  correction2: number
  /** What weight decay leaves of a parameter. */
  retained: number
}

/** Coefficients of step `step`, counted from 1. */
export function adamwCoefficients(
  { learningRate, beta1, beta2, epsilon, weightDecay }: AdamWSettings,
  step: number,
): AdamWCoefficients {
  const { fround, sqrt } = Math
  return {
    beta1: fround(beta1),
    beta2: fround(beta2),
    complement1: fround(1 - beta1),
    complement2: fround(1 - beta2),
    epsilon: fround(epsilon),
    stepSize: fround(learningRate / (1 - beta1 ** step)),
    correction2: fround(sqrt(1 - beta2 ** step)),
    retained: fround(1 - learningRate * weightDecay),
  }
}

function updateRange(
  parameters: Float32Array,
  gradient: Float32Array,
  { firstMoment, secondMoment }: AdamWState,
  coefficients: AdamWCoefficients,
  gradientFactor: number,
  from: number,
  to: number,
): void {
  const { fround, sqrt } = Math
  const { beta1, beta2, complement1, complement2 } = coefficients
  const { epsilon, stepSize, correction2, retained } = coefficients
  const factor = fround(gradientFactor)
  for (let i = from; i < to; i++) {
    const g = fround(gradient[i]! * factor)
    const m = fround(fround(firstMoment[i]! * beta1) + fround(g * complement1))
    const v = fround(fround(secondMoment[i]! * beta2) + fround(fround(g * g) * complement2))
    firstMoment[i] = m
    secondMoment[i] = v
    const denominator = fround(fround(fround(sqrt(v)) / correction2) + epsilon)
    parameters[i] = fround(parameters[i]! * retained) - fround(stepSize * fround(m / denominator))
  }
}

/** Neighbouring tensors of equal decay as one range: long loops. */
export function decayRanges(schema: Schema): { from: number; to: number; decay: boolean }[] {
  const ranges: { from: number; to: number; decay: boolean }[] = []
  for (const { offset, size, decay } of schema.entries) {
    const last = ranges.at(-1)
    if (last?.decay === decay) last.to = offset + size
    else ranges.push({ from: offset, to: offset + size, decay })
  }
  return ranges
}
