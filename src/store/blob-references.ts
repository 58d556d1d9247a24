/**
 * Reference counts of the blobs that this node's runs need, and the store that respects them.
 *
 * Content addressing makes runs share blobs without knowing it (an all-zero momentum chunk, a common text), so nobody
 * may delete a blob because it alone is done with it. Whoever keeps a blob before it asks `blobs` for it never loses it:
 * a deletion that is under way is waited for, and then the blob is visibly gone.
 */
import { CID } from 'multiformats/cid'
import type { BlobStore } from './blob-store.ts'

export interface BlobReferences {
  /** The store to use beside these references. */
  readonly blobs: BlobStore
  /** Keeps blobs until the returned function is called; that call deletes those nobody else keeps. Idempotent. */
  retain(cids: Iterable<string>): () => Promise<void>
  /** Keeps whatever its store is asked for, until it is released: for work that names its blobs one by one. */
  pin(): PinnedBlobs
  /** Deletes every stored blob that nobody keeps. For a start, after all runs have retained theirs. */
  sweep(): Promise<number>
}

export interface PinnedBlobs {
  readonly blobs: BlobStore
  release(): Promise<void>
}

export function createBlobReferences(store: BlobStore): BlobReferences {
  const counts = new Map<string, number>()
  const deletions = new Map<string, Promise<void>>()

  /** Deletes the blob unless somebody keeps it by now. */
  async function drop(cid: string): Promise<void> {
    await deletions.get(cid)?.catch(() => {})
    if (counts.has(cid)) return
    const deletion = store.delete(CID.parse(cid)).finally(() => deletions.delete(cid))
    deletions.set(cid, deletion)
    await deletion
  }

  /** Neither sees a blob that is about to go, nor loses one that it stores. */
  async function settled(cid: CID): Promise<void> {
    await deletions.get(cid.toString())?.catch(() => {})
  }

  const blobs: BlobStore = {
    async has(cid) {
      await settled(cid)
      return store.has(cid)
    },
    async get(cid) {
      await settled(cid)
      return store.get(cid)
    },
    async put(cid, bytes) {
      await settled(cid)
      return store.put(cid, bytes)
    },
    delete: (cid) => store.delete(cid),
    list: () => store.list(),
  }

  function retain(cids: Iterable<string>): () => Promise<void> {
    const kept = [...new Set(cids)]
    for (const cid of kept) counts.set(cid, (counts.get(cid) ?? 0) + 1)
    let released = false
    return async () => {
      if (released) return
      released = true
      const orphans = kept.filter((cid) => {
        const left = (counts.get(cid) ?? 1) - 1
        if (left > 0) counts.set(cid, left)
        else counts.delete(cid)
        return left <= 0
      })
      for (const cid of orphans) await drop(cid)
    }
  }

  return {
    blobs,
    retain,
    pin: () => createPins(blobs, retain),
    async sweep() {
      let deleted = 0
      for await (const cid of store.list()) {
        if (counts.has(cid.toString())) continue
        await drop(cid.toString())
        deleted++
      }
      return deleted
    },
  }
}

/** A store that keeps what it is asked for, by `retain`. */
export function createPins(blobs: BlobStore, retain: BlobReferences['retain']): PinnedBlobs {
  const releases = new Map<string, () => Promise<void>>()
  const keep = (cid: CID): void => {
    const name = cid.toString()
    if (!releases.has(name)) releases.set(name, retain([name]))
  }
  return {
    blobs: {
      ...blobs,
      async has(cid) {
        keep(cid)
        return blobs.has(cid)
      },
      async put(cid, bytes) {
        keep(cid)
        return blobs.put(cid, bytes)
      },
    },
    async release() {
      const kept = [...releases.values()]
      releases.clear()
      for (const release of kept) await release()
    },
  }
}
