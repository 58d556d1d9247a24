import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { createMetrics } from '../../../src/metrics.ts'
import { createBlobExchange } from '../../../src/net/blobs.ts'
import type { Network } from '../../../src/net/network.ts'
import { createSharedBlobs } from '../../../src/net/shared-blobs.ts'
import type { OpenBlob, SharedBlobs } from '../../../src/net/shared-blobs.ts'
import { seededRandom } from '../../../src/random.ts'
import { createBlobReferences } from '../../../src/store/blob-references.ts'
import type { BlobStore } from '../../../src/store/blob-store.ts'
import { cidOf, encodeCbor, parseCid } from '../../../src/store/content.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { addressOf, startMemoryNetwork } from './memory-network.ts'

interface Peer {
  network: Network
  store: BlobStore
  records: RecordStore
  shared: SharedBlobs
  /** Another life on the same stores, as after a restart; `swept` blobs were kept by nobody. */
  again: () => Promise<{ shared: SharedBlobs; swept: number }>
}

async function startPeer(connectedTo?: Peer): Promise<Peer> {
  const network = await startMemoryNetwork()
  const store = createMemoryBlobStore()
  const records = createMemoryRecordStore()
  const references = createBlobReferences(store)
  const { rpc } = network
  const exchange = createBlobExchange({ rpc, store: references.blobs, metrics: createMetrics() })
  const options = { network, records, references, blobExchange: exchange }
  if (connectedTo !== undefined) await network.connect(addressOf(connectedTo.network))
  return {
    network,
    store,
    records,
    shared: await createSharedBlobs(options),
    async again() {
      const fresh = createBlobReferences(store)
      const shared = await createSharedBlobs({ ...options, references: fresh })
      return { shared, swept: await fresh.sweep() }
    },
  }
}

const random = seededRandom('shared blobs')
const some = (size: number): Uint8Array => new Uint8Array(size).map(() => random.integer(256))
const limit = (): AbortSignal => AbortSignal.timeout(20_000)

async function whole(content: OpenBlob['content']): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of content) pieces.push(piece)
  return Buffer.concat(pieces)
}

async function stored(store: BlobStore): Promise<string[]> {
  const cids: string[] = []
  for await (const cid of store.list()) cids.push(cid.toString())
  return cids
}

describe('a blob', () => {
  test.each([0, 1, LIMITS.blobBytes])('of %i bytes is the block of its own CID', async (size) => {
    const { shared, store } = await startPeer()
    const bytes = some(size)
    const { cid } = await shared.put([bytes])
    expect(cid).toBe((await cidOf(bytes, 'raw')).toString())
    expect(await stored(store)).toEqual([cid])
    const open = await shared.open(parseCid(cid), limit())
    expect(open.bytes).toBe(size)
    expect(await whole(open.content)).toEqual(Buffer.from(bytes))
  })

  test.each([LIMITS.blobBytes + 1, 3 * LIMITS.blobBytes])(
    'of %i bytes has the same CID however it is cut, and comes back whole',
    async (size) => {
      const { shared } = await startPeer()
      const bytes = some(size)
      const { cid } = await shared.put([bytes])
      const cut = [0, 7, 1 << 16, LIMITS.blobBytes, size]
      const pieces = cut.map((end, index) => bytes.subarray(cut[index - 1] ?? 0, end))
      expect(await shared.put(pieces)).toEqual({ cid, bytes: size, provided: false })
      const open = await shared.open(parseCid(cid), limit())
      expect(open.bytes).toBe(size)
      expect((await whole(open.content)).equals(bytes)).toBe(true)
    },
  )

  test('is kept over a restart until it is forgotten; then all of it goes', async () => {
    const peer = await startPeer()
    const { cid } = await peer.shared.put([some(2 * LIMITS.blobBytes + 5)])
    const other = await peer.shared.put([some(10)])
    const { shared, swept } = await peer.again()
    expect(swept).toBe(0)
    expect(shared.list()).toEqual(peer.shared.list())
    expect(shared.list().map((blob) => blob.cid)).toEqual([cid, other.cid].sort())
    await shared.forget(parseCid(cid))
    expect(await stored(peer.store)).toEqual([other.cid])
    await expect(shared.forget(parseCid(cid))).rejects.toMatchObject({ code: 'not_found' })
    expect((await peer.again()).shared.list()).toEqual([other])
  })

  test('that fails to come leaves nothing behind', async () => {
    const peer = await startPeer()
    const broken = (async function* () {
      yield some(LIMITS.blobBytes + 3)
      throw new Error('the caller hung up')
    })()
    await expect(peer.shared.put(broken)).rejects.toThrow('hung up')
    expect(await stored(peer.store)).toEqual([])
    expect(peer.shared.list()).toEqual([])
  })
})

describe('between peers', () => {
  test('content goes by its CID, and who only reads it does not keep it', async () => {
    const holder = await startPeer()
    const reader = await startPeer(holder)
    const bytes = some(5 * LIMITS.blobBytes + 1)
    const { cid } = await holder.shared.put([bytes])
    const open = await reader.shared.open(parseCid(cid), limit())
    expect(open.bytes).toBe(bytes.length)
    expect((await whole(open.content)).equals(bytes)).toBe(true)
    expect(reader.shared.list()).toEqual([])
    expect(await stored(reader.store)).toEqual([])
  })

  test('who provides it has it, and is found', async () => {
    const holder = await startPeer()
    const provider = await startPeer(holder)
    const reader = await startPeer(holder)
    const bytes = some(2 * LIMITS.blobBytes)
    const { cid } = await holder.shared.put([bytes])
    const named = parseCid(cid)
    expect(await provider.shared.provide(named, limit())).toMatchObject({ cid, provided: true })
    expect(provider.shared.list()).toEqual([{ cid, bytes: bytes.length, provided: true }])
    expect((await provider.again()).swept).toBe(0)
    await holder.shared.forget(named)
    await expect
      .poll(() => reader.shared.providers(named, limit()), { timeout: 20_000 })
      .toContain(provider.network.peerId)
    const { content } = await reader.shared.open(named, limit())
    expect((await whole(content)).equals(bytes)).toBe(true)
  })

  test('what nobody has is unavailable', async () => {
    const holder = await startPeer()
    const reader = await startPeer(holder)
    const cid = await cidOf(some(9), 'raw')
    const reading = reader.shared.open(cid, limit())
    await expect(reading).rejects.toMatchObject({ code: 'blob_unavailable' })
  })
})

describe('a list of blocks from somebody else', () => {
  async function listed(list: unknown, ...blocks: Uint8Array[]): Promise<[Peer, string]> {
    const peer = await startPeer()
    const encoded = encodeCbor(list)
    const cid = await cidOf(encoded, 'dag-cbor')
    await peer.store.put(cid, encoded)
    for (const block of blocks) await peer.store.put(await cidOf(block, 'raw'), block)
    return [peer, cid.toString()]
  }

  test('whose blocks are shorter than it says is found corrupt', async () => {
    const block = some(10)
    const chunks = [(await cidOf(block, 'raw')).toString()]
    const [{ shared }, cid] = await listed({ version: 1, bytes: 11, chunks }, block)
    const { content } = await shared.open(parseCid(cid), limit())
    await expect(whole(content)).rejects.toMatchObject({ code: 'blob_corrupt' })
  })

  test.each([
    ['that claims more than its blocks can hold', { version: 1, bytes: 1e9, chunks: [] }],
    ['of another version', { version: 2, bytes: 0, chunks: [] }],
    ['that is something else', { note: 'a manifest' }],
  ])('%s is content itself', async (_what, list) => {
    const [{ shared }, cid] = await listed(list)
    const { content, bytes } = await shared.open(parseCid(cid), limit())
    expect(await whole(content)).toEqual(Buffer.from(encodeCbor(list)))
    expect(bytes).toBe(encodeCbor(list).length)
  })
})
