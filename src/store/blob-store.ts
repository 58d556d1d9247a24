/** Content-addressed bytes: a blob is at most `LIMITS.blobBytes` long and is named by the CID of its sha-256. */
import type { CID } from 'multiformats/cid'

/** Where blobs are kept: bytes named by their CID. */
export interface BlobStore {
  has(cid: CID): Promise<boolean>
  /** The bytes, verified against the CID; undefined when absent or found corrupt (then it is also dropped). */
  get(cid: CID): Promise<Uint8Array | undefined>
  /** Stores bytes under `cid`, which the caller computed. Atomic: a crash leaves all or nothing. They are not kept. */
  put(cid: CID, bytes: Uint8Array): Promise<void>
  delete(cid: CID): Promise<void>
  list(): AsyncIterable<CID>
}
