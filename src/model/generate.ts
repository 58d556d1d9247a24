/** Choice of the next token from a model's logits. */
import { ShoalError } from '../errors.ts'
import type { Random } from '../random.ts'

export interface SamplingOptions {
  /** Divides the logits: 1 is the model's own distribution, 0 always takes the most likely token. */
  temperature: number
  /** Only so many of the most likely tokens are considered; 0 for all. */
  topK: number
}

/**
 * A token drawn from softmax(logits / temperature) over the `topK` most likely ones (ties go to the lower token).
 * Throws `engine_failed` when a logit is not a number: the parameters are.
 */
export function sampleToken(
  logits: Float32Array,
  { temperature, topK }: SamplingOptions,
  random: Random,
): number {
  if (logits.some(Number.isNaN)) {
    throw new ShoalError(
      'engine_failed',
      'the model gives no probabilities: its parameters diverged',
    )
  }
  const ranked = Array.from(logits, (logit, token) => ({ logit, token })).sort(
    (a, b) => b.logit - a.logit || a.token - b.token,
  )
  const best = ranked[0]
  if (best === undefined) throw new ShoalError('internal', 'a vocabulary has at least one token')
  const candidates = topK > 0 ? ranked.slice(0, topK) : ranked
  if (temperature === 0) return best.token
  const weights = candidates.map(({ logit }) => Math.exp((logit - best.logit) / temperature))
  let rest = random.uniform() * weights.reduce((sum, weight) => sum + weight, 0)
  for (const [index, weight] of weights.entries()) {
    rest -= weight
    if (rest < 0) return candidates[index]?.token ?? best.token
  }
  return best.token
}
