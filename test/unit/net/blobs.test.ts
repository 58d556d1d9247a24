import type { CID } from 'multiformats/cid'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { createMetrics } from '../../../src/metrics.ts'
import type { Metrics } from '../../../src/metrics.ts'
import { createBlobExchange } from '../../../src/net/blobs.ts'
import type { BlobExchange } from '../../../src/net/blobs.ts'
import type { Network } from '../../../src/net/network.ts'
import { seededRandom } from '../../../src/random.ts'
import type { BlobStore } from '../../../src/store/blob-store.ts'
import { cidOf } from '../../../src/store/content.ts'
import { createMemoryBlobStore } from '../../../src/store/memory.ts'
import { createManualClock } from '../../manual-clock.ts'
import { addressOf, startMemoryNetwork } from './memory-network.ts'

interface Peer {
  network: Network
  id: string
  store: BlobStore
  metrics: Metrics
  exchange: BlobExchange
}

async function startPeer(): Promise<Peer> {
  const metrics = createMetrics()
  const network = await startMemoryNetwork({ metrics })
  const store = createMemoryBlobStore()
  const exchange = createBlobExchange({ rpc: network.rpc, store, metrics })
  return { network, id: network.peerId, store, metrics, exchange }
}

/** The first asks the others, and is connected to them. */
async function startPeers(count: number): Promise<[asker: Peer, ...others: Peer[]]> {
  const asker = await startPeer()
  const others = await Promise.all(Array.from({ length: count - 1 }, startPeer))
  for (const other of others) await asker.network.connect(addressOf(other.network))
  return [asker, ...others]
}

const random = seededRandom('blobs')

async function fill(stores: readonly BlobStore[], count: number, size = 1000): Promise<CID[]> {
  const cids: CID[] = []
  for (let index = 0; index < count; index++) {
    const bytes = new Uint8Array(size).map(() => random.integer(256))
    const cid = await cidOf(bytes, 'raw')
    for (const store of stores) await store.put(cid, bytes)
    cids.push(cid)
  }
  return cids
}

const sent = ({ metrics }: Peer): number => metrics.read('blob_bytes_sent_total')

describe('what was given', () => {
  test('is remembered by blob', async () => {
    const [asker, giver] = await startPeers(2)
    const [first, second] = await fill([giver!.store], 2)
    const { exchange } = giver!
    const is = (wanted: CID | undefined) => (cid: string) => cid === wanted?.toString()
    expect(exchange.lastServedMs(() => true)).toBe(-Infinity)
    await asker.exchange.fetch(first!, [giver!.id])
    expect(exchange.lastServedMs(is(first))).toBeGreaterThan(0)
    expect(exchange.lastServedMs(is(second))).toBe(-Infinity)
    await asker.exchange.fetch(second!, [giver!.id])
    expect(exchange.lastServedMs(() => true)).toBe(exchange.lastServedMs(is(second)))
  })
})

describe('fetch', () => {
  test('brings a blob of full size, verified and stored', async () => {
    const [asker, other] = await startPeers(2)
    const [cid] = await fill([other!.store], 1, LIMITS.blobBytes)
    const bytes = await asker.exchange.fetch(cid!, [other!.id])
    expect(await cidOf(bytes, 'raw')).toEqual(cid)
    expect(await asker.store.has(cid!)).toBe(true)
    expect(asker.metrics.read('blob_bytes_received_total')).toBe(LIMITS.blobBytes)
    expect(sent(other!)).toBe(LIMITS.blobBytes)
  })

  test('asks nobody for what is here', async () => {
    const asker = await startPeer()
    const [cid] = await fill([asker.store], 1)
    expect(await asker.exchange.fetch(cid!, [])).toHaveLength(1000)
  })

  test('names the blob that nobody has', async () => {
    const [asker, other] = await startPeers(2)
    const [cid] = await fill([], 1)
    for (const sources of [[], [other!.id]]) {
      await expect(asker.exchange.fetch(cid!, sources)).rejects.toMatchObject({
        code: 'blob_unavailable',
        message: expect.stringContaining(cid!.toString()),
        details: { cid: cid!.toString() },
      })
    }
  })

  test('refuses what is no CID', async () => {
    const [asker, other] = await startPeers(2)
    await expect(
      asker.network.rpc.call(other!.id, 'blob/get', Uint8Array.of(1, 2, 3)),
    ).rejects.toMatchObject({ code: 'message_invalid' })
  })
})

describe('fetchAll', () => {
  test('shares the work among the sources', async () => {
    const [asker, ...others] = await startPeers(4)
    const cids = await fill(
      others.map(({ store }) => store),
      60,
      50_000,
    )
    const progress: string[] = []
    await asker.exchange.fetchAll(
      cids,
      others.map(({ id }) => id),
      { onProgress: (done, total) => progress.push(`${done}/${total}`) },
    )
    expect(progress).toEqual(Array.from({ length: 61 }, (_, done) => `${done}/60`))
    for (const cid of cids) expect(await asker.store.has(cid)).toBe(true)
    for (const other of others) expect(sent(other)).toBeGreaterThanOrEqual(10 * 50_000)
    expect(others.reduce((sum, other) => sum + sent(other), 0)).toBe(60 * 50_000)
  })

  test('finds each blob wherever it is', async () => {
    const [asker, ...others] = await startPeers(4)
    const cids = (await Promise.all(others.map(({ store }) => fill([store], 5)))).flat()
    await asker.exchange.fetchAll(
      cids,
      others.map(({ id }) => id),
    )
    for (const cid of cids) expect(await asker.store.has(cid)).toBe(true)
  })

  test('goes on where an earlier transfer stopped', async () => {
    const [asker, other] = await startPeers(2)
    const cids = await fill([other!.store], 40)
    const stop = new AbortController()
    const first = asker.exchange.fetchAll(cids, [other!.id], {
      signal: stop.signal,
      onProgress: (done) => {
        if (done === 15) stop.abort()
      },
    })
    await expect(first).rejects.toMatchObject({ code: 'aborted' })
    const before = asker.metrics.read('blob_bytes_received_total')
    expect(before).toBeGreaterThanOrEqual(15 * 1000)
    expect(before).toBeLessThan(40 * 1000)
    await asker.exchange.fetchAll(cids, [other!.id])
    expect(asker.metrics.read('blob_bytes_received_total')).toBe(40 * 1000)
  })

  test('fetches a CID named twice once, and nothing when all is here', async () => {
    const [asker, other] = await startPeers(2)
    const [cid] = await fill([other!.store], 1)
    await asker.exchange.fetchAll([cid!, cid!], [other!.id])
    expect(sent(other!)).toBe(1000)
    const progress: number[][] = []
    await asker.exchange.fetchAll([cid!], [], {
      onProgress: (done, total) => progress.push([done, total]),
    })
    expect(progress).toEqual([[1, 1]])
  })

  test('a source that sends wrong bytes is asked no more; the right ones come from another', async () => {
    const [asker, honest] = await startPeers(2)
    const liar = await startMemoryNetwork()
    let asked = 0
    liar.rpc.handle('blob/get', async () => {
      asked++
      return new Uint8Array(1000)
    })
    await asker.network.connect(addressOf(liar))
    const cids = await fill([honest!.store], 30)
    await asker.exchange.fetchAll(cids, [liar.peerId, honest!.id])
    expect(asked).toBe(1)
    expect(asker.metrics.read('blobs_rejected_total')).toBe(1)
    for (const cid of cids) {
      expect(await cidOf((await asker.store.get(cid))!, 'raw')).toEqual(cid)
    }
    await expect(asker.exchange.fetchAll(await fill([], 1), [liar.peerId])).rejects.toMatchObject({
      code: 'blob_unavailable',
      message: expect.stringContaining('blob_corrupt'),
    })
  })

  test('bytes longer than a blob are wrong even if their hash is right', async () => {
    const [asker, other] = await startPeers(2)
    const long = new Uint8Array(LIMITS.blobBytes + 1)
    const cid = await cidOf(long, 'raw')
    await other!.store.put(cid, long)
    await expect(asker.exchange.fetch(cid, [other!.id])).rejects.toMatchObject({
      code: 'blob_unavailable',
    })
    expect(await asker.store.has(cid)).toBe(false)
  })

  test('a source that dies in the middle costs only what was under way', async () => {
    const [asker, dying, living] = await startPeers(3)
    const cids = await fill([dying!.store, living!.store], 60, 20_000)
    await asker.exchange.fetchAll(cids, [dying!.id, living!.id], {
      onProgress: (done) => {
        if (done === 20) void dying!.network.stop()
      },
    })
    for (const cid of cids) expect(await asker.store.has(cid)).toBe(true)
    // What both sent for one blob is at most the dead one's requests in flight.
    const twice = (sent(dying!) + sent(living!)) / 20_000 - 60
    expect(twice).toBeLessThanOrEqual(LIMITS.chunksInFlight)
    expect(asker.metrics.read('blob_bytes_received_total')).toBe(60 * 20_000)
  })

  test('a source that cannot be reached delays nobody', async () => {
    const [asker, other] = await startPeers(2)
    const gone = await startPeer()
    await gone.network.stop()
    const cids = await fill([other!.store], 20)
    // On a clock that stands still nothing can be waited for.
    const { network, store, metrics } = asker
    const clock = createManualClock()
    asker.exchange.close()
    const exchange = createBlobExchange({ rpc: network.rpc, store, metrics, clock })
    await exchange.fetchAll(cids, [gone.id, other!.id])
    for (const cid of cids) expect(await store.has(cid)).toBe(true)
  })

  test('a source that fails now and then is given another chance, one that always fails is not', async () => {
    const asker = await startPeer()
    const shaky = await startMemoryNetwork()
    const store = createMemoryBlobStore()
    const cids = await fill([store], 3)
    let asked = 0
    shaky.rpc.handle('blob/get', async (request) => {
      asked++
      const cid = cids.find(({ bytes }) => bytes.every((byte, index) => byte === request[index]))
      if (asked === 1 || cid === undefined) throw new Error('disk busy')
      return (await store.get(cid))!
    })
    await asker.network.connect(addressOf(shaky))
    await asker.exchange.fetchAll(cids, [shaky.peerId])
    expect(asked).toBe(4)
    const unknown = await fill([], 1)
    await expect(asker.exchange.fetchAll(unknown, [shaky.peerId])).rejects.toMatchObject({
      code: 'blob_unavailable',
      message: expect.stringContaining('internal'),
    })
    expect(asked).toBe(4 + 3)
  })

  test('a source that turns up during the transfer takes part', async () => {
    const [asker, first, second] = await startPeers(3)
    const cids = [...(await fill([first!.store], 10)), ...(await fill([second!.store], 10))]
    const sources = [first!.id]
    await asker.exchange.fetchAll(cids, () => sources, {
      onProgress: (done) => {
        if (done === 5) sources.push(second!.id)
      },
    })
    expect(sent(second!)).toBe(10 * 1000)
  })

  test('asks one source for few blobs at once, and never for more than the limit', async () => {
    const asker = await startPeer()
    const slow = await startMemoryNetwork()
    const store = createMemoryBlobStore()
    const cids = await fill([store], 50)
    let working = 0
    let most = 0
    slow.rpc.handle('blob/get', async (request) => {
      most = Math.max(most, ++working)
      await new Promise((resolve) => setTimeout(resolve, 5))
      working--
      const cid = cids.find(({ bytes }) => bytes.every((byte, index) => byte === request[index]))
      return (await store.get(cid!))!
    })
    await asker.network.connect(addressOf(slow))
    await asker.exchange.fetchAll(cids, [slow.peerId])
    expect(most).toBe(LIMITS.chunksInFlight)
  })

  test('a full disk ends the transfer with the fault of the store', async () => {
    const [asker, other] = await startPeers(2)
    const cids = await fill([other!.store], 5)
    const network = await startMemoryNetwork()
    await network.connect(addressOf(other!.network))
    const full: BlobStore = {
      ...asker.store,
      put: () => Promise.reject(new Error('no space left on device')),
    }
    const metrics = createMetrics()
    const exchange = createBlobExchange({ rpc: network.rpc, store: full, metrics })
    await expect(exchange.fetchAll(cids, [other!.id])).rejects.toThrow('no space left')
  })

  test('ends when it is aborted while nobody answers', async () => {
    const asker = await startPeer()
    const silent = await startMemoryNetwork()
    silent.rpc.handle('blob/get', () => new Promise(() => {}))
    await asker.network.connect(addressOf(silent))
    const stop = new AbortController()
    const fetching = asker.exchange.fetchAll(await fill([], 3), [silent.peerId], {
      signal: stop.signal,
    })
    setTimeout(() => stop.abort(), 50)
    await expect(fetching).rejects.toMatchObject({ code: 'aborted' })
  })

  test('is not served after close', async () => {
    const [asker, other] = await startPeers(2)
    const cids = await fill([other!.store], 1)
    other!.exchange.close()
    await expect(
      asker.network.rpc.call(other!.id, 'blob/get', cids[0]!.bytes),
    ).rejects.toMatchObject({ code: 'refused' })
  })
})
