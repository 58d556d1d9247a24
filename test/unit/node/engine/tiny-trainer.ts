/** A tiny model on a tiny text, for tests of the engine. */
import { createDataset } from '../../../../src/data/dataset.ts'
import { createTokenizer, tokenizerSpecFor } from '../../../../src/data/tokenizer.ts'
import { systemClock } from '../../../../src/clock.ts'
import { initialParameters } from '../../../../src/model/initial-parameters.ts'
import { innerOptimizerSchema, type ModelSpec } from '../../../../src/run/manifest.ts'
import type { TrainerSpec } from '../../../../src/run/trainer.ts'

const LINES = [
  'the quick brown fox jumps over the lazy dog',
  'pack my box with five dozen liquor jugs',
  'how vexingly quick daft zebras jump',
]
const text = new TextEncoder().encode(
  Array.from({ length: 120 }, (_, i) => LINES[(i * i) % LINES.length]).join('\n'),
)
const pace = { clock: systemClock }
export const tinyTokenizer = createTokenizer(await tokenizerSpecFor('char', text, pace))

const model: ModelSpec = {
  kind: 'gpt',
  layers: 2,
  heads: 2,
  embedding: 32,
  context: 16,
  vocabulary: tinyTokenizer.vocabularySize,
  activation: 'relu-squared',
}

const dataset = await createDataset(
  text,
  { tokenizer: tinyTokenizer, validationFraction: 0.1, context: 16 },
  pace,
)

export const tinySpec: TrainerSpec = {
  model,
  batchSequences: 8,
  inner: innerOptimizerSchema.parse({ learningRate: 1e-2, warmupSteps: 5 }),
  innerSteps: 10,
  outerSteps: 20,
  dataset,
  streams: ['peer'],
  seed: 'run',
}

export const tinyParameters = initialParameters(model, 'seed')
