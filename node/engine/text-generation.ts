/** Text from a trained model, token by token, in this thread: a small model takes about a millisecond each. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { abortReason } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import { sampleToken, type SamplingOptions } from '../../src/model/generate.ts'
import { gptSchema, samplingGraph, type GptSpec } from '../../src/model/gpt.ts'
import { seededRandom } from '../../src/random.ts'
import { loadRuntime, vectorBindings, type Backend } from './runtime.ts'

export interface TextGenerationOptions extends SamplingOptions {
  spec: GptSpec
  parameters: Float32Array
  /** Tokens to continue, at least one. */
  prompt: ArrayLike<number>
  /** Tokens to generate. */
  count: number
  seed: string
  backend?: Backend | 'auto'
  signal?: AbortSignal
  onToken?: (token: number) => void
}

/**
 * The tokens that follow the prompt; the model sees the last `context` tokens of both. The same seed gives the same
 * tokens. Throws `usage` on an empty or foreign prompt or an absurd count, `schema_mismatch` on parameters of another
 * model, `engine_failed`, or the signal's reason.
 */
export async function generateText(options: TextGenerationOptions): Promise<number[]> {
  const { spec, parameters, count, signal, backend = 'auto' } = options
  const prompt = Array.from(options.prompt)
  const schema = gptSchema(spec)
  requireUsable(options, prompt, schema.size)
  const runtime = await loadRuntime(backend, { threads: 1, spinning: false })
  const program = await runtime.open(samplingGraph(spec))
  try {
    const tokens = new Int32Array(spec.context)
    const position = new Int32Array(1)
    const logits = new Float32Array(spec.vocabulary)
    const run = program.bind(
      {
        tokens: { data: tokens, shape: [spec.context] },
        position: { data: position, shape: [1] },
        ...vectorBindings(schema, parameters),
      },
      { logits: { data: logits, shape: [spec.vocabulary] } },
    )
    const random = seededRandom('sample', options.seed)
    const all = [...prompt]
    while (all.length < prompt.length + count) {
      await nextTurn()
      if (signal?.aborted) throw abortReason(signal)
      const seen = all.slice(-spec.context)
      tokens.set(seen)
      position[0] = seen.length - 1
      await run()
      const token = sampleToken(logits, options, random)
      all.push(token)
      options.onToken?.(token)
    }
    return all.slice(prompt.length)
  } finally {
    await program.close()
  }
}

function requireUsable(
  { spec, parameters, count, temperature, topK }: TextGenerationOptions,
  prompt: readonly number[],
  size: number,
): void {
  if (parameters.length !== size) {
    throw new ShoalError(
      'schema_mismatch',
      `${parameters.length} parameters do not fit a model of ${size}`,
    )
  }
  if (prompt.length === 0) {
    throw new ShoalError('usage', 'the prompt is empty: give at least one token to continue')
  }
  const foreign = prompt.find((token) => !(token >= 0 && token < spec.vocabulary))
  if (foreign !== undefined) {
    throw new ShoalError(
      'usage',
      `the prompt holds token ${foreign}, which the model does not know`,
    )
  }
  if (!(Number.isInteger(count) && count >= 1 && count <= LIMITS.sampleTokens)) {
    throw new ShoalError('usage', `ask for 1 to ${LIMITS.sampleTokens} tokens, not ${count}`)
  }
  if (!(temperature >= 0) || !(Number.isInteger(topK) && topK >= 0)) {
    throw new ShoalError('usage', 'temperature must not be negative, top-k a whole number from 0')
  }
}
