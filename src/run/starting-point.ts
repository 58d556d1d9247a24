/** What a run starts from when not from fresh weights: the files of a model, or a checkpoint of another run. */
import type { CID } from 'multiformats/cid'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { gptSchema } from '../model/gpt.ts'
import type { BlobExchange } from '../net/blobs.ts'
import type { Network } from '../net/network.ts'
import type { BlobReferences } from '../store/blob-references.ts'
import { readSafetensors, readTensors } from '../tensor/safetensors.ts'
import {
  checkpointChunks,
  decodeCheckpoint,
  fetchCheckpoint,
  type Checkpoint,
} from './checkpoint.ts'
import { importModel } from './exported-model.ts'
import type { Manifest, TokenizerSpec } from './manifest.ts'
import { externalModelOf, modelSchema } from './model-schema.ts'
import { decodeManifest, parseRunId } from './run-id.ts'
import { loadVector } from './vector-blobs.ts'

export interface StartingPoint {
  model: Manifest['model']
  /** Of a gpt. */
  tokenizer: TokenizerSpec | undefined
  parameters: Float32Array
}

/** The files of an exported folder, or of any other that has at least the tensors. */
export interface ModelFiles {
  /** Text of `config.json`. */
  config?: string | undefined
  /** Text of `tokenizer.json`. */
  tokenizer?: string | undefined
  /** Content of `model.safetensors`. */
  tensors: AsyncIterable<Uint8Array> | Iterable<Uint8Array>
}

/** Throws `folder_invalid`, `tensors_invalid` or `spec_invalid` naming what does not fit. */
export async function startFromFiles(
  kind: Manifest['model']['kind'],
  files: ModelFiles,
): Promise<StartingPoint> {
  if (kind === 'external') {
    const { schema, parameters } = await readTensors(files.tensors)
    return { model: externalModelOf(schema), tokenizer: undefined, parameters }
  }
  if (files.config === undefined) {
    throw new ShoalError(
      'folder_invalid',
      "there is no config.json beside the tensors: name the folder of an exported model, or set model.kind = 'external'",
    )
  }
  const { model, tokenizer } = importModel(files.config, files.tokenizer)
  return { model, tokenizer, parameters: await readSafetensors(files.tensors, gptSchema(model)) }
}

export interface CheckpointDependencies {
  network: Network
  references: BlobReferences
  blobExchange: BlobExchange
  clock: Clock
}

/** Finding and fetching a checkpoint that may be of any size. */
const FETCH_MS = 300_000

/**
 * Fetches a checkpoint of any run, and the run's manifest, from the store or from peers. Throws `blob_unavailable`
 * when nobody has them, `spec_invalid` when the CID is of something else, `message_invalid` when the rest is.
 */
export async function startFromCheckpoint(
  cid: CID,
  { network, references, blobExchange, clock }: CheckpointDependencies,
  signal?: AbortSignal,
): Promise<StartingPoint> {
  const deadline = clock.deadline(FETCH_MS, `fetching checkpoint ${cid.toString()}`, signal)
  const releases = [references.retain([cid.toString()])]
  const keep = (cids: string[]): void => void releases.push(references.retain(cids))
  const options = { signal: deadline, keep }
  try {
    const { blobs } = references
    const fetch = async (wanted: CID): Promise<[Uint8Array, sources: string[]]> => {
      const sources = (await blobs.has(wanted)) ? [] : await sourcesOf(network, wanted, deadline)
      return [await blobExchange.fetch(wanted, sources, options), sources]
    }
    const [bytes, holders] = await fetch(cid)
    const checkpoint = givenCheckpoint(cid, bytes)
    const run = parseRunId(checkpoint.run)
    keep([checkpoint.run, ...checkpointChunks(checkpoint)])
    const [manifestBytes, members] = await fetch(run)
    const manifest = decodeManifest(manifestBytes)
    const { size: elements } = modelSchema(manifest.model)
    const expected = { run: checkpoint.run, schemaHash: manifest.schemaHash, elements }
    await fetchCheckpoint(cid, expected, [...holders, ...members], blobExchange, options)
    return {
      model: manifest.model,
      tokenizer: manifest.data?.tokenizer,
      parameters: await loadVector(checkpoint.parameters, elements, blobs),
    }
  } finally {
    for (const release of releases) await release()
  }
}

/** The CID is what the user wrote: that of a run, say, is not a peer's fault. */
function givenCheckpoint(cid: CID, bytes: Uint8Array): Checkpoint {
  try {
    return decodeCheckpoint(bytes)
  } catch (cause) {
    throw new ShoalError(
      'spec_invalid',
      `${cid.toString()} is no checkpoint: give the CID of one (\`shoal checkpoint list\`)`,
      { cause },
    )
  }
}

/** Providers of a CID, and whoever is connected: the newest providers may not be in the DHT yet. */
async function sourcesOf(network: Network, cid: CID, signal: AbortSignal): Promise<string[]> {
  const found = new Set(network.connectedPeers().slice(0, LIMITS.providersPerCid))
  for await (const peer of network.discovery.find(cid, { signal })) found.add(peer)
  return [...found]
}
