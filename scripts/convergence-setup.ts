/** What the swarms of the benches train. */
import { innerOptimizerSchema } from '../src/run/manifest.ts'
import { ALPHABET, corpusDataset } from './corpus.ts'
import type { SimulationSetup } from './simulation.ts'

/** Data parallel training of this model on this corpus does best with 4.5e-3 to 6e-3 (of 3e-3 to 1.2e-2). */
export const LEARNING_RATE = 6e-3

/** As for the bars: a GPT of two layers, 8 sequences of 32 tokens per peer and step, AdamW with a cosine. */
export async function convergenceSetup(
  learningRate: number = LEARNING_RATE,
): Promise<SimulationSetup> {
  const context = 32
  return {
    model: {
      kind: 'gpt',
      layers: 2,
      heads: 4,
      embedding: 48,
      context,
      vocabulary: ALPHABET.length,
      activation: 'relu-squared',
    },
    dataset: await corpusDataset(context),
    batchSequences: 8,
    inner: innerOptimizerSchema.parse({ learningRate }),
    innerSteps: 20,
  }
}
