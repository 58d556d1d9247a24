/**
 * Blobs between peers: `blob/get` on the bulk lane takes a CID and answers with its bytes.
 *
 * The receiver pulls: it asks several peers for different blobs at once, verifies every blob against its CID before it is
 * stored, and stores each as it comes, so that a transfer goes on where it stopped. A peer that sent wrong bytes is not
 * asked again in this transfer; one that does not answer is, twice.
 */
import type { CID } from 'multiformats/cid'
import type { Clock } from '../clock.ts'
import { systemClock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import type { Metrics } from '../metrics.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { decodeCid } from '../store/content.ts'
import type { PeerRpc } from './network.ts'
import { BLOB_METHOD, transferBlobs } from './transfer.ts'
import type { BlobSources } from './transfer.ts'

export interface FetchOptions {
  signal?: AbortSignal | undefined
}

export interface FetchAllOptions extends FetchOptions {
  /** After each blob that is here: so many of `total`, those counted that were here before. */
  onProgress?: ((done: number, total: number) => void) | undefined
}

export interface BlobExchange {
  /** The bytes, from the store or from a peer (then stored). Throws `blob_unavailable` when no source has them. */
  fetch(cid: CID, sources: BlobSources, options?: FetchOptions): Promise<Uint8Array>
  /** Brings all into the store. Throws `blob_unavailable`, naming a CID that no source had; what came stays. */
  fetchAll(cids: readonly CID[], sources: BlobSources, options?: FetchAllOptions): Promise<void>
  /** `clock.now()` when a peer was last given a blob that `isMeant`; -Infinity when that is not remembered. */
  lastServedMs(isMeant: (cid: string) => boolean): number
  /** Stops serving. */
  close(): void
}

export interface BlobExchangeOptions {
  rpc: PeerRpc
  store: BlobStore
  metrics: Metrics
  clock?: Clock | undefined
}

/** Blobs given last, of all transfers together: some seconds of a fast line. */
const SERVED_REMEMBERED = 1024

export function createBlobExchange(options: BlobExchangeOptions): BlobExchange {
  const { rpc, store, metrics, clock = systemClock } = options
  const served = new Map<string, number>()
  const noteServed = (cid: string): void => {
    // At the end of the order: what was not asked for longest is forgotten first.
    served.delete(cid)
    served.set(cid, clock.now())
    for (const oldest of served.keys()) {
      if (served.size <= SERVED_REMEMBERED) break
      served.delete(oldest)
    }
  }
  const close = rpc.handle(BLOB_METHOD, async (request) => {
    const cid = decodeCid(request)
    const bytes = await store.get(cid)
    if (bytes === undefined) throw new ShoalError('not_found', `no blob ${cid.toString()} here`)
    metrics.add('blob_bytes_sent_total', bytes.length)
    noteServed(cid.toString())
    return bytes
  })

  async function fetchAll(
    cids: readonly CID[],
    sources: BlobSources,
    { signal, onProgress }: FetchAllOptions = {},
  ): Promise<void> {
    const wanted = new Map(cids.map((cid) => [cid.toString(), cid]))
    const total = wanted.size
    for (const [name, cid] of wanted) if (await store.has(cid)) wanted.delete(name)
    onProgress?.(total - wanted.size, total)
    if (wanted.size === 0) return
    let done = total - wanted.size
    const onStored = (): void => onProgress?.(++done, total)
    const missing = [...wanted.values()]
    await transferBlobs({ rpc, store, metrics, clock, wanted: missing, sources, signal, onStored })
  }

  return {
    fetchAll,
    lastServedMs: (isMeant) =>
      Math.max(-Infinity, ...[...served].map(([cid, atMs]) => (isMeant(cid) ? atMs : -Infinity))),
    async fetch(cid, sources, fetchOptions) {
      const here = await store.get(cid)
      if (here !== undefined) return here
      await fetchAll([cid], sources, fetchOptions)
      const bytes = await store.get(cid)
      if (bytes === undefined) {
        throw new ShoalError('blob_unavailable', `blob ${cid.toString()} was deleted again`)
      }
      return bytes
    },
    close,
  }
}
