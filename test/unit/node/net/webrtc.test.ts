/** WebRTC as the only way that two have, beside their relay. */
import { createHash, randomBytes } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { natProbe } from '../../../../node/net/nat-probe.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import type { Network } from '../../../../src/net/network.ts'
import { until } from '../../net/memory-network.ts'
import { startHidden, startReflector, startRelay } from './relay-network.ts'
import { PeerConnection, recordConnections } from './webrtc-stack.ts'

const MIB = 1 << 20

function hash(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

function transportsTo(from: Network, to: Network): string[] {
  return from.links().flatMap(({ peer, transport }) => (peer === to.peerId ? [transport] : []))
}

describe.skipIf(PeerConnection === undefined)('two that know each other through a relay', () => {
  test('come together by WebRTC, and go on by the relay when that breaks', async () => {
    const relay = await startRelay({}, { reflectorPorts: await startReflector() })
    const recorded = recordConnections()
    const metrics = createMetrics()
    const options = { PeerConnection: recorded.PeerConnection, natProbe: natProbe(), metrics }
    const [a, b] = await startHidden([relay], options)
    b.rpc.handle('test/hash', async (request) => Buffer.from(hash(request)))
    b.rpc.handle('test/echo', async (request) => request)
    const call = { lane: 'bulk', repeatable: true } as const
    await a.rpc.call(b.peerId, 'test/echo', Uint8Array.of(1))
    await until(() => transportsTo(a, b).includes('webrtc'))
    // Until the relay is free again.
    await until(() =>
      [transportsTo(a, b), transportsTo(b, a)].every((all) => all.join() === 'webrtc'),
    )
    const link = a.links().find(({ peer }) => peer === b.peerId)
    expect(link).toMatchObject({ direct: true, direction: 'outbound' })
    expect(link?.history.map(({ direct }) => direct)).toEqual([false, true])
    expect(metrics.read('direct_paths_total', 'found')).toBe(1)
    // No proof that this node can be dialled.
    expect(b.reachability()).not.toBe('public')

    const before = link?.bytesSent ?? 0
    const chunks = Array.from({ length: 4 }, () => randomBytes(MIB))
    const replies = await Promise.all(
      chunks.flatMap((chunk) => [
        a.rpc.call(b.peerId, 'test/hash', chunk, call),
        a.rpc.call(b.peerId, 'test/echo', chunk, call).then((echo) => Buffer.from(hash(echo))),
      ]),
    )
    expect(replies.map((reply) => Buffer.from(reply).toString())).toEqual(
      chunks.flatMap((chunk) => [hash(chunk), hash(chunk)]),
    )
    const after = a.links().find(({ peer }) => peer === b.peerId)
    expect(after?.transport).toBe('webrtc')
    expect((after?.bytesSent ?? 0) - before).toBeGreaterThan(8 * MIB)

    for (const connection of recorded.connections) connection.close()
    expect(await a.rpc.call(b.peerId, 'test/echo', Uint8Array.of(2), call)).toEqual(
      Uint8Array.of(2),
    )
    expect(transportsTo(a, b)).toContain('p2p-circuit')

    // Nothing is left behind.
    await Promise.all([a.stop(), b.stop()])
    const states = recorded.connections.map(({ connectionState }) => connectionState)
    expect(states).toEqual(states.map(() => 'closed'))
  })
})
