/** Peers that this node was connected to, kept over a restart: a way back in when every bootstrap address is gone. */
import type { PeerId, PeerStore } from '@libp2p/interface'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import { decodeCbor, encodeCbor } from '../store/content.ts'
import type { RecordStore } from '../store/record-store.ts'

const KEY = 'network/peers'

/** `cachedPeers` entries of 16 addresses of 100 characters. */
const CACHE_BYTES = 256 << 10

/** A peer that just connected is written after this long, together with what else has come. */
const WRITE_DELAY_MS = 1_000

const cacheSchema = z
  .array(
    z.strictObject({
      peer: z.string().max(128),
      addresses: z.array(z.string().max(256)).max(LIMITS.peerAddresses),
    }),
  )
  .max(LIMITS.cachedPeers)

export type CachedPeer = z.infer<typeof cacheSchema>[number]

export interface PeerCache {
  /** Of this session and the last, most recent first. */
  peers(): CachedPeer[]
  /** Moves a peer to the front; written soon. */
  note(peer: PeerId): void
  /** Writes what is not written yet. */
  stop(): Promise<void>
}

export interface PeerCacheOptions {
  records: RecordStore
  peerStore: PeerStore
  clock: Clock
  logger: Logger
}

export async function createPeerCache(options: PeerCacheOptions): Promise<PeerCache> {
  const { records, peerStore, clock, logger } = options
  // A map keeps the order of insertion: the last are the most recent.
  const entries = new Map<string, CachedPeer>()
  for (const entry of (await readCache(records, logger)).toReversed())
    entries.set(entry.peer, entry)
  const fresh = new Map<string, PeerId>()
  const stopping = new AbortController()
  let writing: Promise<void> | undefined

  async function writeFresh(): Promise<void> {
    while (fresh.size > 0) {
      await clock.sleep(WRITE_DELAY_MS, stopping.signal).catch(() => {})
      const noted = [...fresh]
      fresh.clear()
      for (const [peer, id] of noted) {
        const addresses = await addressesOf(id)
        if (addresses.length === 0) continue
        entries.delete(peer)
        entries.set(peer, { peer, addresses })
      }
      const dropped = [...entries.keys()].slice(0, -LIMITS.cachedPeers)
      for (const peer of dropped) entries.delete(peer)
      await records.put(KEY, encodeCbor(peers(), CACHE_BYTES))
    }
  }

  function peers(): CachedPeer[] {
    return [...entries.values()].toReversed()
  }

  async function addressesOf(id: PeerId): Promise<string[]> {
    try {
      const { addresses } = await peerStore.get(id)
      return addresses
        .map(({ multiaddr }) => multiaddr.toString())
        .filter((address) => address.length <= 256)
        .slice(0, LIMITS.peerAddresses)
    } catch {
      return []
    }
  }

  function startWriting(): Promise<void> {
    return writeFresh()
      .catch((thrown: unknown) => {
        logger.warn('peer_cache_not_written', { message: messageOf(thrown) })
      })
      .finally(() => {
        writing = undefined
      })
  }

  return {
    peers,
    note(peer) {
      fresh.set(peer.toString(), peer)
      writing ??= startWriting()
    },
    async stop() {
      stopping.abort()
      await writing
    },
  }
}

/** Best effort: a cache that cannot be read is an empty one. */
async function readCache(records: RecordStore, logger: Logger): Promise<CachedPeer[]> {
  const bytes = await records.get(KEY)
  if (bytes === undefined) return []
  try {
    return cacheSchema.parse(decodeCbor(bytes, CACHE_BYTES))
  } catch (thrown) {
    logger.warn('peer_cache_unreadable', { message: messageOf(thrown) })
    return []
  }
}
