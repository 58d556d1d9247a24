/** From a user's spec and text to a manifest, with initial weights and text stored as blobs. */
import type { Clock } from '../clock.ts'
import { createDataset } from '../data/dataset.ts'
import { createTokenizer, tokenizerSpecFor } from '../data/tokenizer.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { gptSchema } from '../model/gpt.ts'
import { initialParameters } from '../model/initial-parameters.ts'
import { schemaHash } from '../tensor/schema.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { MANIFEST_VERSION, type Manifest, type ModelSpec, type RunSpec } from './manifest.ts'
import { encodeManifest } from './run-id.ts'
import { storeBytes, storeVector } from './vector-blobs.ts'

export interface CreatedRun {
  id: string
  manifest: Manifest
  /** The creator's own text, for its membership. */
  text: { bytes: number; chunks: string[] }
}

/**
 * Checks spec and text, makes the initial weights, and stores weights, text and manifest.
 * Throws `spec_invalid`, `data_unusable`; nothing is stored before everything was checked.
 */
export async function createManifest(
  spec: RunSpec,
  text: Uint8Array,
  creator: { peer: string; seed: string },
  deps: { blobs: BlobStore; clock: Clock },
): Promise<CreatedRun> {
  if (spec.shareData && text.length > LIMITS.sharedDataBytes) {
    throw new ShoalError(
      'data_unusable',
      `the text has ${text.length} bytes, peers fetch at most ${LIMITS.sharedDataBytes}: set shareData = false and let each peer bring its own`,
    )
  }
  const pace = { clock: deps.clock }
  const tokenizer = await tokenizerSpecFor(spec.tokenizer, text, pace)
  const model: ModelSpec = {
    kind: 'gpt',
    ...spec.model,
    vocabulary: tokenizer.kind === 'byte' ? 256 : tokenizer.vocabulary.length,
  }
  const schema = gptSchema(model)
  const data = { tokenizer, text: null, validationFraction: spec.validationFraction }
  await createDataset(
    text,
    {
      tokenizer: createTokenizer(tokenizer),
      validationFraction: spec.validationFraction,
      context: model.context,
    },
    pace,
  )
  const seed = spec.seed ?? creator.seed
  const storedText = await storeBytes(text, deps.blobs)
  const manifest: Manifest = {
    version: MANIFEST_VERSION,
    name: spec.name,
    public: spec.public,
    model,
    schemaHash: schemaHash(schema),
    initial: await storeVector(initialParameters(model, seed), deps.blobs, deps.clock),
    data: { ...data, text: spec.shareData ? storedText : null },
    batchSequences: spec.batchSequences,
    innerSteps: spec.innerSteps,
    outerSteps: spec.outerSteps,
    inner: spec.inner,
    averaging: spec.averaging,
    limits: spec.limits,
    admins: [...new Set([creator.peer, ...spec.admins])],
    seed,
  }
  const { id, cid, bytes } = await encodeManifest(manifest)
  await deps.blobs.put(cid, bytes)
  return { id, manifest, text: storedText }
}
