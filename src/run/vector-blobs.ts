/** Flat vectors as content-addressed chunks: slice k of the vector is blob k, fp32 little-endian. */
import type { CID } from 'multiformats/cid'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { cidOf, parseCid } from '../store/content.ts'
import { float32Bytes, float32Vector } from '../tensor/float32-bytes.ts'
import type { Chunked } from './manifest.ts'

/** Stores a vector of any length; chunks that are there already cost a hash only. */
export async function storeVector(
  vector: Float32Array,
  blobs: BlobStore,
  clock: Clock,
): Promise<Chunked> {
  const chunks: string[] = []
  for (let from = 0; from < vector.length; from += LIMITS.sliceElements) {
    const bytes = float32Bytes(vector.subarray(from, from + LIMITS.sliceElements))
    chunks.push((await storeBlob(bytes, blobs)).toString())
    if (chunks.length > 1) await clock.sleep(0)
  }
  return { bytes: vector.length * 4, chunks }
}

export async function storeBytes(bytes: Uint8Array, blobs: BlobStore): Promise<Chunked> {
  const chunks: string[] = []
  for (let from = 0; from < bytes.length; from += LIMITS.blobBytes) {
    chunks.push((await storeBlob(bytes.subarray(from, from + LIMITS.blobBytes), blobs)).toString())
  }
  return { bytes: bytes.length, chunks }
}

async function storeBlob(bytes: Uint8Array, blobs: BlobStore): Promise<CID> {
  const cid = await cidOf(bytes, 'raw')
  if (!(await blobs.has(cid))) await blobs.put(cid, bytes)
  return cid
}

/** Whether a peer's claim about a vector of `elements` can be true, before anything is fetched or allocated. */
export function isVectorOf(chunked: Chunked, elements: number): boolean {
  return (
    chunked.bytes === elements * 4 &&
    chunked.chunks.length === Math.ceil(elements / LIMITS.sliceElements)
  )
}

export async function loadVector(
  chunked: Chunked,
  elements: number,
  blobs: BlobStore,
): Promise<Float32Array> {
  if (!isVectorOf(chunked, elements)) {
    throw new ShoalError(
      'state_corrupt',
      `a stored vector has ${chunked.bytes} bytes, the model needs ${elements * 4}`,
    )
  }
  return float32Vector(await loadBytes(chunked, blobs))
}

/** Joins the chunks. Throws `blob_unavailable` when one is missing, `state_corrupt` when the length is wrong. */
export async function loadBytes(chunked: Chunked, blobs: BlobStore): Promise<Uint8Array> {
  if (chunked.bytes > chunked.chunks.length * LIMITS.blobBytes) {
    throw new ShoalError('state_corrupt', 'chunked data is shorter than it claims')
  }
  const whole = new Uint8Array(chunked.bytes)
  let offset = 0
  for (const text of chunked.chunks) {
    const bytes = await blobs.get(parseCid(text))
    if (bytes === undefined)
      throw new ShoalError('blob_unavailable', `blob ${text} is not in the store`)
    if (offset + bytes.length > whole.length)
      throw new ShoalError('state_corrupt', 'chunked data is longer than it claims')
    whole.set(bytes, offset)
    offset += bytes.length
  }
  if (offset !== whole.length)
    throw new ShoalError('state_corrupt', 'chunked data is shorter than it claims')
  return whole
}
