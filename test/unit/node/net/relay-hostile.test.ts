/** Peers that ask a relay for more than their share: raw libp2p nodes that speak its protocol. */
import { noise } from '@libp2p/noise'
import type { Connection } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { lpStream } from '@libp2p/utils'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { nodeTransports } from '../../../../node/net/transports.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { Network } from '../../../../src/net/network.ts'
import {
  decodeHopStatus,
  encodeHopRequest,
  HOP_PROTOCOL,
  RELAY_STATUS,
} from '../../../../src/net/relay-messages.ts'
import type { HopRequest } from '../../../../src/net/relay-messages.ts'
import { addressOf, createRecorder, until } from '../../net/memory-network.ts'
import { startHidden, startRelay } from './relay-network.ts'

async function connectRaw(relay: Network): Promise<Connection> {
  const raw = await createLibp2p({
    transports: nodeTransports(),
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => raw.stop())
  return await raw.dial(multiaddr(addressOf(relay)))
}

async function ask(connection: Connection, request: HopRequest): Promise<number> {
  const stream = await connection.newStream(HOP_PROTOCOL, { maxOutboundStreams: 1000 })
  const messages = lpStream(stream)
  await messages.write(encodeHopRequest(request))
  const { status } = decodeHopStatus((await messages.read()).subarray())
  await stream.close()
  return status
}

describe('a relay', () => {
  test('answers a flood with refusals, tells of it, and sends the peer away', async () => {
    const metrics = createMetrics()
    const { logger, events } = createRecorder()
    const relay = await startRelay({}, { metrics, logger })
    const flooder = await connectRaw(relay)
    const statuses = new Set<number>()
    // More than 120 a minute, however long they take.
    for (let time = 0; metrics.read('relay_requests_total', 'flood') <= 5; time++) {
      statuses.add(await ask(flooder, { type: 'reserve' }))
      expect(time).toBeLessThan(1000)
    }
    expect(statuses).toEqual(new Set([RELAY_STATUS.ok, RELAY_STATUS.resourceLimitExceeded]))
    // A large swarm that meets again asks as often.
    expect(metrics.read('peer_offences_total')).toBe(0)
    const floodOn = async (): Promise<void> => {
      while (flooder.status === 'open') await ask(flooder, { type: 'reserve' })
    }
    await floodOn().catch(() => {})
    await until(() => metrics.read('peers_banned_total') === 1)
    expect(metrics.read('relay_requests_total', 'flood')).toBeGreaterThan(400)
    expect(events.find(({ event }) => event === 'peer_offended')).toMatchObject({
      fields: { peer: expect.any(String), offence: 'flood' },
    })
    // Honest peers are served meanwhile, and afterwards.
    const [a, b] = await startHidden([relay])
    b.rpc.handle('test/echo', async (request) => request)
    expect(await a.rpc.call(b.peerId, 'test/echo', Uint8Array.of(1))).toEqual(Uint8Array.of(1))
  })

  test('that has refused a call is not asked again for it', async () => {
    const metrics = createMetrics()
    const relay = await startRelay({}, { metrics })
    const [a, b] = await startHidden([relay])
    await a.connect(b.peerId)
    // Identified: its addresses are known.
    await until(() => a.connectedPeers().includes(b.peerId))
    await b.stop()
    await until(() => a.links().every(({ peer }) => peer !== b.peerId))
    const refused = metrics.read('relay_requests_total', 'refused')
    await expect(a.connect(b.peerId)).rejects.toMatchObject({ code: 'peer_unreachable' })
    expect(metrics.read('relay_requests_total', 'refused') - refused).toBe(1)
  })

  test('gives one peer no more than its share of the circuits', async () => {
    const metrics = createMetrics()
    const relay = await startRelay({ circuits: 8, circuitsPerPeer: 2 }, { metrics })
    const [a, b] = await startHidden([relay])
    const greedy = await connectRaw(relay)
    const to = peerIdFromString(a.peerId).toMultihash().bytes
    const open = async (): Promise<number> => {
      const stream = await greedy.newStream(HOP_PROTOCOL, { maxOutboundStreams: 1000 })
      const messages = lpStream(stream)
      await messages.write(encodeHopRequest({ type: 'connect', peer: to }))
      return decodeHopStatus((await messages.read()).subarray()).status
    }
    expect([await open(), await open(), await open()]).toEqual([
      RELAY_STATUS.ok,
      RELAY_STATUS.ok,
      RELAY_STATUS.resourceLimitExceeded,
    ])
    expect(metrics.read('relay_requests_total', 'full')).toBe(1)
    b.rpc.handle('test/echo', async (request) => request)
    expect(await a.rpc.call(b.peerId, 'test/echo', Uint8Array.of(1))).toEqual(Uint8Array.of(1))
  })

  test('dials nobody for those who name a peer that does not exist, and cuts off nonsense', async () => {
    const metrics = createMetrics()
    const relay = await startRelay({}, { metrics })
    const liar = await connectRaw(relay)
    const stranger = peerIdFromString((await createIdentity()).peerId).toMultihash().bytes
    expect(await ask(liar, { type: 'connect', peer: stranger })).toBe(RELAY_STATUS.noReservation)
    const stream = await liar.newStream(HOP_PROTOCOL)
    await lpStream(stream).write(new Uint8Array(5000).fill(255))
    await until(() => stream.status !== 'open')
    expect(metrics.read('relay_requests_total', 'failed')).toBe(1)
    expect(relay.relaying()?.use.circuits).toBe(0)
  })
})
