/** Layout of a manifest's model in the flat vector. */
import { gptSchema } from '../model/gpt.ts'
import { createSchema, type Schema } from '../tensor/schema.ts'
import type { ExternalModel, Manifest } from './manifest.ts'

/** Throws `spec_invalid` when sizes do not fit together or the model is too large. */
export function modelSchema(model: Manifest['model']): Schema {
  if (model.kind === 'gpt') return gptSchema(model)
  return createSchema(
    // Who knows the model decides what decays; here it is only a layout.
    model.tensors.map(({ name, shape }) => ({ name, shape, decay: shape.length > 1 })),
  )
}

export function externalModelOf({ entries }: Schema): ExternalModel {
  return {
    kind: 'external',
    tensors: entries.map(({ name, shape }) => ({ name, shape: [...shape] })),
  }
}

/** Tokens of one outer step of a peer; of an external model its sequences, since nobody here knows their length. */
export function plannedTokens({ model, innerSteps, batchSequences }: Manifest): number {
  return innerSteps * batchSequences * (model.kind === 'gpt' ? model.context : 1)
}
