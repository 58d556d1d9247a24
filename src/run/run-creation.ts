/** From a user's spec, text and starting point to a manifest, with initial weights and text stored as blobs. */
import type { Clock } from '../clock.ts'
import { createDataset } from '../data/dataset.ts'
import { createTokenizer, tokenizerSpecFor } from '../data/tokenizer.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { initialParameters } from '../model/initial-parameters.ts'
import { schemaHash } from '../tensor/schema.ts'
import type { BlobStore } from '../store/blob-store.ts'
import {
  freshModel,
  MANIFEST_VERSION,
  type Chunked,
  type Manifest,
  type ModelSpec,
  type RunSpec,
} from './manifest.ts'
import { externalModelOf, modelSchema } from './model-schema.ts'
import { encodeManifest } from './run-id.ts'
import type { StartingPoint } from './starting-point.ts'
import { storeBytes, storeVector } from './vector-blobs.ts'

export interface CreatedRun {
  id: string
  manifest: Manifest
  /** The creator's own text, for its membership; null of an external model. */
  text: Chunked | null
}

/** What a spec names, brought here. */
export interface RunSources {
  /** The text named by `data`. */
  text?: Uint8Array | undefined
  /** The model named by `from`. */
  start?: StartingPoint | undefined
}

interface Stores {
  blobs: BlobStore
  clock: Clock
}

/**
 * Checks spec and sources, makes the initial weights, and stores weights, text and manifest.
 * Throws `spec_invalid`, `data_unusable`; nothing is stored before everything was checked.
 */
export async function createManifest(
  spec: RunSpec,
  sources: RunSources,
  creator: { peer: string; seed: string },
  deps: Stores,
): Promise<CreatedRun> {
  const seed = spec.seed ?? creator.seed
  const { model, parameters, data, text } =
    spec.model.kind === 'external'
      ? externalParts(sources)
      : await gptParts(spec, sources, seed, deps)
  const manifest: Manifest = {
    version: MANIFEST_VERSION,
    name: spec.name,
    public: spec.public,
    model,
    schemaHash: schemaHash(modelSchema(model)),
    initial: await storeVector(parameters, deps.blobs, deps.clock),
    data,
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
  return { id, manifest, text }
}

interface Parts extends Pick<Manifest, 'model' | 'data'> {
  parameters: Float32Array
  text: Chunked | null
}

function externalParts({ start }: RunSources): Parts {
  if (start === undefined) {
    throw new ShoalError('spec_invalid', 'an external model needs the parameters it starts from')
  }
  const { model, parameters } = start
  return { model: externalModelOf(modelSchema(model)), parameters, data: null, text: null }
}

async function gptParts(
  spec: RunSpec,
  { text, start }: RunSources,
  seed: string,
  deps: Stores,
): Promise<Parts> {
  if (text === undefined) throw new ShoalError('spec_invalid', "'data' is missing")
  if (spec.shareData && text.length > LIMITS.sharedDataBytes) {
    throw new ShoalError(
      'data_unusable',
      `the text has ${text.length} bytes, peers fetch at most ${LIMITS.sharedDataBytes}: set shareData = false and let each peer bring its own`,
    )
  }
  const pace = { clock: deps.clock }
  const { validationFraction, shareData } = spec
  const tokenizer =
    start?.tokenizer ?? (await tokenizerSpecFor(spec.tokenizer ?? 'char', text, pace))
  const model = start === undefined ? freshModel(spec, vocabularySize(tokenizer)) : gptOf(start)
  const dataset = { tokenizer: createTokenizer(tokenizer), validationFraction }
  await createDataset(text, { ...dataset, context: model.context }, pace)
  const parameters = start?.parameters ?? initialParameters(model, seed)
  const stored = await storeBytes(text, deps.blobs)
  const data = { tokenizer, text: shareData ? stored : null, validationFraction }
  return { model, parameters, data, text: stored }
}

function vocabularySize(tokenizer: NonNullable<Manifest['data']>['tokenizer']): number {
  return tokenizer.kind === 'byte' ? 256 : tokenizer.vocabulary.length
}

function gptOf({ model }: StartingPoint): ModelSpec {
  if (model.kind === 'gpt') return model
  throw new ShoalError(
    'spec_invalid',
    "what the run is to start from is an external model: set model.kind = 'external'",
  )
}
