/**
 * Content that people share by its CID beside any run: put, read, provided, found.
 *
 * Up to `LIMITS.blobBytes` are one raw block. More is a dag-cbor block that lists the blocks of its pieces in order:
 * `{version: 1, bytes, chunks}`. Whoever has the CID can verify all of it, whoever sent it. What was put or provided is
 * kept until it is forgotten, also over a restart; what was only read is not.
 */
import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { BlobReferences } from '../store/blob-references.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { cidOf, decodeCbor, encodeCbor, parseCid } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { RecordStore } from '../store/record-store.ts'
import type { BlobExchange } from './blobs.ts'
import type { Network } from './network.ts'

/** Content that this node shares by its CID. */
export interface SharedBlob {
  cid: string
  bytes: number
  /** Whether this node announces it in the DHT. */
  provided: boolean
}

/** Shared content that is being read. */
export interface OpenBlob {
  bytes: number
  /** Fetched from peers as it is read, as far as it is not here. */
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>
}

/** Content shared by its CID beside any run, of up to `LIMITS.sharedBlobBytes`. */
export interface SharedBlobs {
  /** Stores and keeps the content. Throws `body_too_large` above `LIMITS.sharedBlobBytes`. */
  put(content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<SharedBlob>
  /** Throws `blob_unavailable` when neither this node nor any peer found has it. */
  open(cid: CID, signal: AbortSignal): Promise<OpenBlob>
  /** Fetches what is not here, keeps it, and announces it, in the background: others find it a little later. */
  provide(cid: CID, signal: AbortSignal): Promise<SharedBlob>
  /** Peers that say they have it, at most `LIMITS.providersPerCid`, and not this one. */
  providers(cid: CID, signal: AbortSignal): Promise<string[]>
  /** What is kept, in the order of CIDs. */
  list(): SharedBlob[]
  /** Keeps it no longer. Throws `not_found`. */
  forget(cid: CID): Promise<void>
}

const listSchema = z.strictObject({
  version: z.literal(1),
  bytes: z.number().int().min(0).max(LIMITS.sharedBlobBytes),
  chunks: z.array(z.string().max(128)).max(LIMITS.sharedBlobBytes / LIMITS.blobBytes),
})
type List = z.infer<typeof listSchema>

const recordSchema = z.strictObject({
  version: z.literal(1),
  bytes: z.number().int().min(0),
  provided: z.boolean(),
})

const KEY_PREFIX = 'blob/'
const RAW = 0x55

export interface SharedBlobsOptions {
  network: Network
  records: RecordStore
  references: BlobReferences
  blobExchange: BlobExchange
}

interface Kept extends SharedBlob {
  release: () => Promise<void>
}

/** Takes up what an earlier life has kept; before unreferenced blobs are swept. */
export async function createSharedBlobs(options: SharedBlobsOptions): Promise<SharedBlobs> {
  const { network, records, references } = options
  const { blobs } = references
  const kept = new Map<string, Kept>()

  async function keep(cid: CID, bytes: number, provided: boolean): Promise<SharedBlob> {
    const name = cid.toString()
    const before = kept.get(name)
    if (before === undefined && kept.size >= LIMITS.sharedBlobs) {
      throw new ShoalError('limit_exceeded', `${kept.size} blobs are kept here: forget some first`)
    }
    const shared = { cid: name, bytes, provided: provided || before?.provided === true }
    const release = before?.release ?? references.retain([name, ...(await chunksOf(cid, blobs))])
    kept.set(name, { ...shared, release })
    await records.put(KEY_PREFIX + name, encodeCbor(recordOf(shared)))
    if (shared.provided) network.discovery.provide(cid)
    return shared
  }

  for (const [key, value] of await records.list(KEY_PREFIX)) {
    const { bytes, provided } = parseMessage(recordSchema, value, 'record of a blob')
    await keep(parseCid(key.slice(KEY_PREFIX.length)), bytes, provided)
  }

  return {
    async put(content) {
      const pinned = references.pin()
      try {
        const { cid, bytes } = await store(content, pinned.blobs)
        return await keep(cid, bytes, false)
      } finally {
        await pinned.release()
      }
    },
    async open(cid, signal) {
      const search = await describe(cid, options, signal)
      const { bytes, block } = search
      return { bytes, content: block === undefined ? read(search, options, signal) : [block] }
    },
    async provide(cid, signal) {
      const search = await describe(cid, options, signal)
      const { bytes, chunks } = search
      const release = references.retain([cid.toString(), ...chunks.map(String)])
      try {
        await fetchBlocks([cid, ...chunks], search, options, signal)
        return await keep(cid, bytes, true)
      } finally {
        await release()
      }
    },
    async providers(cid, signal) {
      const found = []
      for await (const peer of network.discovery.find(cid, { signal })) found.push(peer)
      return found
    },
    list: () =>
      [...kept.values()]
        .map(({ cid, bytes, provided }) => ({ cid, bytes, provided }))
        .sort((a, b) => (a.cid < b.cid ? -1 : 1)),
    async forget(cid) {
      const name = cid.toString()
      const blob = kept.get(name)
      if (blob === undefined) throw new ShoalError('not_found', `blob ${name} is not kept here`)
      kept.delete(name)
      if (blob.provided) network.discovery.unprovide(cid)
      await records.delete(KEY_PREFIX + name)
      await blob.release()
    },
  }
}

function recordOf({ bytes, provided }: SharedBlob): z.infer<typeof recordSchema> {
  return { version: 1, bytes, provided }
}

/** Cuts the content into blocks; memory holds one of them. */
async function store(
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  blobs: BlobStore,
): Promise<{ cid: CID; bytes: number }> {
  const block = new Uint8Array(LIMITS.blobBytes)
  const chunks: CID[] = []
  let filled = 0
  let bytes = 0
  const flush = async (): Promise<void> => {
    const cid = await cidOf(block.subarray(0, filled), 'raw')
    if (!(await blobs.has(cid))) await blobs.put(cid, block.slice(0, filled))
    chunks.push(cid)
    filled = 0
  }
  for await (const piece of content) {
    bytes += piece.length
    if (bytes > LIMITS.sharedBlobBytes) {
      throw new ShoalError('body_too_large', `a blob has ${LIMITS.sharedBlobBytes} bytes at most`)
    }
    for (let from = 0; from < piece.length;) {
      const part = piece.subarray(from, from + block.length - filled)
      block.set(part, filled)
      filled += part.length
      from += part.length
      if (filled === block.length) await flush()
    }
  }
  if (filled > 0 || chunks.length === 0) await flush()
  const [only] = chunks
  if (chunks.length === 1 && only !== undefined) return { cid: only, bytes }
  const list: List = { version: 1, bytes, chunks: chunks.map(String) }
  const encoded = encodeCbor(list)
  const cid = await cidOf(encoded, 'dag-cbor')
  await blobs.put(cid, encoded)
  return { cid, bytes }
}

/** A blob on its way to a reader, and whom to ask for its blocks. */
interface Search {
  root: CID
  bytes: number
  /** Of a list. */
  chunks: CID[]
  /** Of a blob that is one block itself: nobody keeps it while it waits for its reader. */
  block: Uint8Array | undefined
  sources: string[]
  /** Whether the DHT was asked too. */
  isWide: boolean
}

/** Size and content of a blob: its one block, or those that it lists. Fetches its first block when it is not here. */
async function describe(
  root: CID,
  options: SharedBlobsOptions,
  signal: AbortSignal,
): Promise<Search> {
  const { references, network } = options
  const sources = network.connectedPeers().slice(0, LIMITS.providersPerCid)
  const search: Search = { root, bytes: 0, chunks: [], block: undefined, sources, isWide: false }
  const release = references.retain([root.toString()])
  try {
    await fetchBlocks([root], search, options, signal)
    const block = await blockOf(root, references.blobs)
    const list = listOf(root, block)
    if (list === undefined) return { ...search, bytes: block.length, block }
    return { ...search, bytes: list.bytes, chunks: list.chunks.map(parseCid) }
  } finally {
    await release()
  }
}

async function chunksOf(cid: CID, blobs: BlobStore): Promise<string[]> {
  const block = await blobs.get(cid)
  return (block && listOf(cid, block)?.chunks) ?? []
}

/** Undefined of a block that is content itself: raw, or a record of another kind. */
function listOf(cid: CID, block: Uint8Array): List | undefined {
  if (cid.code === RAW) return undefined
  try {
    const list = listSchema.parse(decodeCbor(block, LIMITS.blobBytes))
    return list.chunks.length === Math.ceil(list.bytes / LIMITS.blobBytes) ? list : undefined
  } catch {
    return undefined
  }
}

/** Reads block after block; while some are read, the next ones are fetched. */
async function* read(
  search: Search,
  options: SharedBlobsOptions,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const { references } = options
  const { chunks, bytes } = search
  const release = references.retain(chunks.map(String))
  const fetchFrom = (start: number): Promise<void> => {
    const window = chunks.slice(start, start + WINDOW)
    const fetching = fetchBlocks(window, search, options, signal)
    // Whoever awaits it sees the failure; until then it must not count as unhandled.
    fetching.catch(() => {})
    return fetching
  }
  try {
    let coming = fetchFrom(0)
    for (const [index, chunk] of chunks.entries()) {
      if (index % WINDOW === 0) {
        await coming
        coming = fetchFrom(index + WINDOW)
      }
      const block = await blockOf(chunk, references.blobs)
      if (block.length !== Math.min(LIMITS.blobBytes, bytes - index * LIMITS.blobBytes)) {
        throw new ShoalError(
          'blob_corrupt',
          `block ${index} of ${String(search.root)} is not whole`,
        )
      }
      yield block
    }
    await coming
  } finally {
    await release()
  }
}

/** Blocks fetched ahead of a reader. */
const WINDOW = LIMITS.chunksFetched

async function blockOf(cid: CID, blobs: BlobStore): Promise<Uint8Array> {
  const block = await blobs.get(cid)
  if (block !== undefined) return block
  throw new ShoalError('blob_unavailable', `block ${cid.toString()} is not in the store`)
}

/** Brings blocks into the store: from the peers known so far, else from those that the DHT names. */
async function fetchBlocks(
  cids: readonly CID[],
  search: Search,
  { network, blobExchange }: SharedBlobsOptions,
  signal: AbortSignal,
): Promise<void> {
  try {
    await blobExchange.fetchAll(cids, search.sources, { signal })
  } catch (thrown) {
    if (asFault(thrown).code !== 'blob_unavailable' || search.isWide) throw thrown
    search.isWide = true
    for await (const peer of network.discovery.find(search.root, { signal })) {
      if (!search.sources.includes(peer)) search.sources.push(peer)
    }
    await blobExchange.fetchAll(cids, search.sources, { signal })
  }
}
