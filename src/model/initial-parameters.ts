/** The parameters a run starts from. */
import { seededRandom, type Random } from '../random.ts'
import { gptSchema, type GptSpec } from './gpt.ts'

/**
 * GPT-2's deviation at its width. Narrower models need more: every matrix sums over the width, so that with 0.02 a width
 * of 48 starts, and for a thousand steps stays, too flat.
 */
const DEVIATION = 0.02
const DEVIATION_WIDTH = 768

/**
 * Initial parameters of GPT-2: matrices N(0, 0.02² · 768 / width), those that write to the residual stream divided by
 * √(2 layers); gains 1, biases 0. Every tensor has its own stream, so that its values depend on the seed and its name only.
 * Bit-identical on every machine and JavaScript engine.
 */
export function initialParameters(spec: GptSpec, seed: string): Float32Array {
  const schema = gptSchema(spec)
  const parameters = new Float32Array(schema.size)
  const ofMatrices = DEVIATION * Math.sqrt(DEVIATION_WIDTH / spec.embedding)
  for (const { name, offset, size, decay } of schema.entries) {
    const values = parameters.subarray(offset, offset + size)
    if (!decay) {
      values.fill(/ln_[12f]\.weight$/.test(name) ? 1 : 0)
      continue
    }
    const residual = name.endsWith('.c_proj.weight')
    const deviation = residual ? ofMatrices / Math.sqrt(2 * spec.layers) : ofMatrices
    const random = seededRandom('initial parameters', seed, name)
    for (let index = 0; index < size; index += 1) values[index] = deviation * normal(random)
  }
  return parameters
}

/**
 * Sum of twelve uniform numbers, less 6: mean 0, variance 1, no tail beyond 6. Additions are exact in the same way
 * everywhere; the logarithm and cosine of Box and Muller are left to the JavaScript engine by its standard.
 */
function normal(random: Random): number {
  let sum = -6
  for (let term = 0; term < 12; term += 1) sum += random.uniform()
  return sum
}
