/**
 * Reference counts of the blobs that this node's runs need.
 *
 * Content addressing makes runs share blobs without knowing it (an all-zero momentum chunk, a common text), so nobody
 * may delete a blob because it alone is done with it.
 */
import { CID } from 'multiformats/cid'
import type { BlobStore } from './blob-store.ts'

export interface BlobReferences {
  /** Keeps blobs until the returned function is called; that call deletes those nobody else keeps. Idempotent. */
  retain(cids: Iterable<string>): () => Promise<void>
  /** Deletes every stored blob that nobody keeps. For a start, after all runs have retained theirs. */
  sweep(): Promise<number>
}

export function createBlobReferences(blobs: BlobStore): BlobReferences {
  const counts = new Map<string, number>()
  return {
    retain(cids) {
      const kept = [...new Set(cids)]
      for (const cid of kept) counts.set(cid, (counts.get(cid) ?? 0) + 1)
      let released = false
      return async () => {
        if (released) return
        released = true
        for (const cid of kept) {
          const left = (counts.get(cid) ?? 1) - 1
          if (left > 0) {
            counts.set(cid, left)
          } else {
            counts.delete(cid)
            await blobs.delete(CID.parse(cid))
          }
        }
      }
    },
    async sweep() {
      let deleted = 0
      for await (const cid of blobs.list()) {
        if (counts.has(cid.toString())) continue
        await blobs.delete(cid)
        deleted++
      }
      return deleted
    },
  }
}
