/**
 * Which windows of the tokens a batch is made of. A window is `context + 1` tokens long: inputs and, one further,
 * targets. Pure functions of their arguments: a replay sees the same batches, another peer sees others.
 */
import { ShoalError } from '../errors.ts'
import { seededRandom } from '../random.ts'

export interface BatchPosition {
  /** The run id. */
  seed: string
  /** The peer id, or whatever else names an independent stream. */
  stream: string
  outerStep: number
  innerStep: number
}

/** First tokens of `sequences` windows drawn uniformly, with replacement, from `tokens` training tokens. */
export function trainingWindows(
  { seed, stream, outerStep, innerStep }: BatchPosition,
  { tokens, context, sequences }: { tokens: number; context: number; sequences: number },
): Uint32Array {
  const starts = startsOf(tokens, context)
  const random = seededRandom('batch', seed, stream, outerStep, innerStep)
  return Uint32Array.from({ length: sequences }, () => random.integer(starts))
}

/**
 * First tokens of `count` windows of `tokens` validation tokens: spread evenly from the first to the last, or drawn by
 * the name `sample`.
 */
export function validationWindows(
  { tokens, context, count }: { tokens: number; context: number; count: number },
  sample?: string,
): Uint32Array {
  const last = startsOf(tokens, context) - 1
  if (sample !== undefined) {
    const random = seededRandom('validation', sample)
    return Uint32Array.from({ length: count }, () => random.integer(last + 1))
  }
  return Uint32Array.from({ length: count }, (_, i) =>
    count === 1 ? 0 : Math.floor((i * last) / (count - 1)),
  )
}

/** How many places a window may start at. */
function startsOf(tokens: number, context: number): number {
  if (tokens <= context) {
    throw new ShoalError('internal', `${tokens} tokens hold no window of ${context + 1}`)
  }
  return tokens - context
}
