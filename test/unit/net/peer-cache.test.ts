import { memory } from '@libp2p/memory'
import type { PeerStore } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { LIMITS } from '../../../src/limits.ts'
import { silentLogger } from '../../../src/log.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import { createPeerCache } from '../../../src/net/peer-cache.ts'
import type { PeerCache } from '../../../src/net/peer-cache.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { createRecorder } from './memory-network.ts'

/** libp2p's own peer store, without starting a node. */
async function createPeerStore(): Promise<PeerStore> {
  const { peerStore } = await createLibp2p({ start: false, transports: [memory()] })
  return peerStore
}

function open(records: RecordStore, peerStore: PeerStore): Promise<PeerCache> {
  return createPeerCache({ records, peerStore, clock: systemClock, logger: silentLogger })
}

async function addPeer(peerStore: PeerStore, addresses: number): Promise<string> {
  const { peerId } = await createIdentity()
  const multiaddrs = Array.from({ length: addresses }, (_, n) =>
    multiaddr(`/ip4/192.0.2.1/tcp/${n + 1}`),
  )
  await peerStore.merge(peerIdFromString(peerId), { multiaddrs })
  return peerId
}

describe('remembered peers', () => {
  test('survive, the most recent first, no more than the limit', async () => {
    const records = createMemoryRecordStore()
    const peerStore = await createPeerStore()
    const peers: string[] = []
    for (let index = 0; index < LIMITS.cachedPeers + 5; index++) {
      peers.push(await addPeer(peerStore, 1))
    }
    const first = await open(records, peerStore)
    for (const peer of peers) first.note(peerIdFromString(peer))
    await first.stop()

    const second = await open(records, peerStore)
    const kept = second.peers().map(({ peer }) => peer)
    expect(kept).toEqual(peers.slice(5).toReversed())
    const middle = peers[60] ?? ''
    second.note(peerIdFromString(middle))
    await second.stop()
    expect((await open(records, peerStore)).peers()[0]).toEqual({
      peer: middle,
      addresses: ['/ip4/192.0.2.1/tcp/1'],
    })
  })

  test('have a bounded number of addresses; without any they are not worth keeping', async () => {
    const records = createMemoryRecordStore()
    const peerStore = await createPeerStore()
    const cache = await open(records, peerStore)
    const many = await addPeer(peerStore, 40)
    for (const peer of [many, await addPeer(peerStore, 0), (await createIdentity()).peerId]) {
      cache.note(peerIdFromString(peer))
    }
    await cache.stop()
    const [entry, ...others] = (await open(records, peerStore)).peers()
    expect(entry?.peer).toBe(many)
    expect(entry?.addresses).toHaveLength(LIMITS.peerAddresses)
    expect(others).toEqual([])
  })

  test.each([
    ['garbage', Uint8Array.of(1, 2, 3)],
    ['another shape', encodeCbor([{ peer: 7 }])],
    ['too many', encodeCbor(Array.from({ length: 129 }, () => ({ peer: 'x', addresses: [] })))],
  ])('are forgotten when the record is %s', async (_what, bytes) => {
    const records = createMemoryRecordStore()
    await records.put('network/peers', bytes)
    const { logger, events } = createRecorder()
    const peerStore = await createPeerStore()
    const cache = await createPeerCache({ records, peerStore, clock: systemClock, logger })
    expect(cache.peers()).toEqual([])
    expect(events).toEqual([expect.objectContaining({ event: 'peer_cache_unreadable' })])
  })

  test('cost a warning, not the node, when the disk is full', async () => {
    const peerStore = await createPeerStore()
    const { logger, events } = createRecorder()
    const records: RecordStore = {
      ...createMemoryRecordStore(),
      put: () => Promise.reject(new Error('disk full')),
    }
    const cache = await createPeerCache({ records, peerStore, clock: systemClock, logger })
    cache.note(peerIdFromString(await addPeer(peerStore, 1)))
    await cache.stop()
    expect(events).toEqual([
      { level: 'warn', event: 'peer_cache_not_written', fields: { message: 'disk full' } },
    ])
  })
})
