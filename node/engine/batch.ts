/** The batch that an inner step or an evaluation reads: one pair of buffers, filled from the sampler's windows. */
import type { Dataset } from '../../src/data/dataset.ts'
import { trainingWindows, validationWindows } from '../../src/data/sampler.ts'
import type { BatchPosition } from '../../src/data/sampler.ts'
import { ShoalError } from '../../src/errors.ts'
import type { TrainerSpec } from '../../src/run/trainer.ts'
import type { Bindings, BoundProgram } from './runtime.ts'

export interface Batch {
  /** `tokens` and `targets` of the model's graphs. */
  readonly inputs: Bindings
  /** `loss`. */
  readonly outputs: Bindings
  /** Tokens of one batch. */
  readonly tokens: number
  fillTraining(position: BatchPosition): void
  /** Batch `index` of `batches` spread evenly over the validation tokens, or drawn from them by a name. */
  fillValidation(index: number, batches: number, sample?: string): void
  /** Runs a program on the batch and reads its loss. */
  lossOf(program: BoundProgram): Promise<number>
}

/** Throws `data_unusable` when the dataset holds tokens beyond the model's vocabulary. */
export function createBatch({ model, batchSequences: sequences, dataset }: TrainerSpec): Batch {
  requireKnownTokens(dataset, model.vocabulary)
  const { context } = model
  const tokens = new Int32Array(sequences * context)
  const targets = new Int32Array(sequences * context)
  const loss = new Float32Array(1)
  const fill = (source: Uint16Array, windows: Uint32Array): void => {
    for (const [row, start] of windows.entries()) {
      tokens.set(source.subarray(start, start + context), row * context)
      targets.set(source.subarray(start + 1, start + 1 + context), row * context)
    }
  }
  return {
    inputs: {
      tokens: { data: tokens, shape: [tokens.length] },
      targets: { data: targets, shape: [targets.length] },
    },
    outputs: { loss: { data: loss, shape: [] } },
    tokens: tokens.length,
    fillTraining(position) {
      const size = { tokens: dataset.train.length, context, sequences }
      fill(dataset.train, trainingWindows(position, size))
    },
    fillValidation(index, batches, sample) {
      const { validation } = dataset
      const count = batches * sequences
      const windows = validationWindows({ tokens: validation.length, context, count }, sample)
      fill(validation, windows.subarray(index * sequences, (index + 1) * sequences))
    },
    async lossOf(program) {
      await program()
      return loss[0] ?? Number.NaN
    },
  }
}

function requireKnownTokens({ train, validation }: Dataset, vocabulary: number): void {
  for (const tokens of [train, validation]) {
    for (const token of tokens) {
      if (token < vocabulary) continue
      throw new ShoalError(
        'data_unusable',
        `the data holds token ${token}, the model's vocabulary has ${vocabulary}: tokenize it with the run's tokenizer`,
      )
    }
  }
}
