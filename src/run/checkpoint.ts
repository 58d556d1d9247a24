/**
 * Checkpoints: the outer state of a run at one step, as content-addressed chunks named in a dag-cbor manifest.
 *
 * The chunks of a checkpoint are those of the committed state, so that publishing one costs a manifest. Two peers with
 * equal parameters at a step make checkpoints with equal CIDs.
 */
import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { hashOf } from '../random.ts'
import { LIMITS } from '../limits.ts'
import { compactBytes } from '../optim/optimizer-state.ts'
import type { BlobExchange } from '../net/blobs.ts'
import type { BlobSources } from '../net/transfer.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { cidOf, encodeCbor, parseCid } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import { chunkedSchema, type Chunked } from './manifest.ts'
import { isVectorOf } from './vector-blobs.ts'

export const checkpointSchema = z.strictObject({
  version: z.literal(1),
  run: z.string().max(128),
  /** Completed outer steps. */
  outerStep: z.number().int().min(0),
  schemaHash: z.string().length(64),
  parameters: chunkedSchema,
  /** Outer momentum, where all peers share it (`diloco`). */
  momentum: chunkedSchema.nullable(),
  /** Of a snapshot: how large its giver's gradients are, for the inner optimizer of a newcomer. */
  optimizer: chunkedSchema.optional(),
  /** Product of the final merge. */
  final: z.boolean(),
})
export type Checkpoint = z.infer<typeof checkpointSchema>

export async function encodeCheckpoint(
  checkpoint: Checkpoint,
): Promise<{ cid: CID; bytes: Uint8Array }> {
  const bytes = encodeCbor(checkpointSchema.parse(checkpoint))
  return { cid: await cidOf(bytes, 'dag-cbor'), bytes }
}

export function decodeCheckpoint(bytes: Uint8Array): Checkpoint {
  return parseMessage(checkpointSchema, bytes, 'checkpoint', LIMITS.manifestBytes)
}

export async function loadCheckpoint(cid: CID, blobs: BlobStore): Promise<Checkpoint> {
  const bytes = await blobs.get(cid)
  if (bytes === undefined)
    throw new ShoalError('not_found', `checkpoint ${cid.toString()} is not on this node`)
  return decodeCheckpoint(bytes)
}

export function checkpointChunks({ parameters, momentum, optimizer }: Checkpoint): string[] {
  return [parameters, momentum, optimizer].flatMap((stored) => stored?.chunks ?? [])
}

/** Whether a peer's claim about a newcomer's optimizer state can be true. */
function isCompactState({ bytes, chunks }: Chunked, elements: number): boolean {
  const expected = compactBytes(elements)
  return bytes === expected && chunks.length === Math.ceil(expected / LIMITS.blobBytes)
}

export interface CheckpointFetchOptions {
  signal: AbortSignal
  /** Told what is about to be fetched, so that nothing of it is deleted meanwhile. */
  keep?: (cids: string[]) => void
  /** Whether to fetch what only a newcomer needs; otherwise it is left out. */
  withOptimizer?: boolean
}

/**
 * Fetches a checkpoint of `run` by CID, verifies that it fits the model, and brings all its chunks into the store.
 * Throws `schema_mismatch` or `message_invalid` when it is not what it should be, `blob_unavailable` when no source
 * helps.
 */
export async function fetchCheckpoint(
  cid: CID,
  expected: { run: string; schemaHash: string; elements: number },
  sources: BlobSources,
  exchange: BlobExchange,
  { signal, keep = () => {}, withOptimizer = false }: CheckpointFetchOptions,
): Promise<Checkpoint> {
  keep([cid.toString()])
  const { optimizer, ...rest } = decodeCheckpoint(await exchange.fetch(cid, sources, { signal }))
  const checkpoint: Checkpoint = withOptimizer && optimizer ? { ...rest, optimizer } : rest
  if (checkpoint.run !== expected.run)
    throw new ShoalError('message_invalid', 'the checkpoint is of another run')
  if (checkpoint.schemaHash !== expected.schemaHash) {
    throw new ShoalError(
      'schema_mismatch',
      'the checkpoint is of another model than the manifest says',
    )
  }
  const vectors = [
    checkpoint.parameters,
    ...(checkpoint.momentum === null ? [] : [checkpoint.momentum]),
  ]
  const isOptimizer =
    checkpoint.optimizer === undefined || isCompactState(checkpoint.optimizer, expected.elements)
  if (!isOptimizer || !vectors.every((vector) => isVectorOf(vector, expected.elements))) {
    throw new ShoalError('message_invalid', 'the checkpoint has the wrong size for its model')
  }
  const chunks = checkpointChunks(checkpoint)
  keep(chunks)
  await exchange.fetchAll(chunks.map(parseCid), sources, { signal })
  return checkpoint
}

/** One hash for a vector stored in chunks: equal exactly when the vectors are equal. */
export function vectorHash(vector: Chunked): string {
  return hashOf(vector.bytes, ...vector.chunks)
}
