import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import { loadConfig } from '../../../../node/config.ts'
import { scopeOf } from '../../../../node/net/scope.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import { PUNCH_METHOD, TOKEN_BYTES, WEBRTC_METHOD } from '../../../../src/net/punch-messages.ts'
import { encodeCbor } from '../../../../src/store/content.ts'
import { addressOf, until } from '../../net/memory-network.ts'
import { startHidden, startRelay, startTcpNetwork } from './relay-network.ts'
import { PeerConnection, recordConnections } from './webrtc-stack.ts'

const OWN = '/ip4/192.0.2.1/tcp/4010'

function scope(...flags: [string, unknown][]) {
  return scopeOf(loadConfig({ env: {}, flags: { bootstrap: OWN, ...Object.fromEntries(flags) } }))
}

describe('the network', () => {
  test('is our own by default', () => {
    expect(scope()).toEqual({ bootstrap: [OWN] })
    expect(scope(['network', 'private'])).toEqual(scope())
  })

  test('may be that of IPFS, through our own peers first', () => {
    const { bootstrap = [], dhtProtocol } = scope(['network', 'public'])
    expect(dhtProtocol).toBe('/ipfs/kad/1.0.0')
    expect(bootstrap[0]).toBe(OWN)
    expect(bootstrap.length).toBeGreaterThan(2)
    for (const address of bootstrap) expect(() => multiaddr(address)).not.toThrow()
  })

  test('may end at the LAN, which nobody serves to the internet', () => {
    expect(scope(['network', 'lan'])).toMatchObject({ isLanOnly: true, bootstrap: [OWN] })
    expect(() => scope(['network', 'lan'], ['public', true])).toThrow('leave one out')
    expect(() => scope(['network', 'wan'])).toThrow('--network')
  })

  test('that ends at the LAN has no way through a relay, even one on the LAN', async () => {
    const metrics = createMetrics()
    const relay = await startRelay({}, { metrics })
    const [hidden] = await startHidden([relay])
    const calls =
      metrics.read('relay_requests_total') - metrics.read('relay_requests_total', 'reserved')
    const own = await startTcpNetwork({ isLanOnly: true, bootstrap: relay.addresses() })
    await until(() => own.connectedPeers().length === 1)
    await expect(own.connect(hidden.peerId)).rejects.toMatchObject({ code: 'peer_unreachable' })
    const reserved = metrics.read('relay_requests_total', 'reserved')
    expect(metrics.read('relay_requests_total') - reserved).toBe(calls)
    const anywhere = await startTcpNetwork({ bootstrap: relay.addresses() })
    await until(() => anywhere.connectedPeers().length === 1)
    expect(await anywhere.connect(hidden.peerId)).toBe(hidden.peerId)
  })

  test('that ends at the LAN has no packets sent elsewhere for a neighbour that asks', async () => {
    const prepared: string[] = []
    const recorded = PeerConnection && recordConnections()
    const own = await startTcpNetwork({
      isLanOnly: true,
      ...(recorded && { PeerConnection: recorded.PeerConnection }),
      punchers: [
        {
          kind: 'udp',
          prepare: async () => {
            prepared.push('udp')
            throw new Error('it must not come to this')
          },
        },
      ],
    })
    const neighbour = await startTcpNetwork()
    await neighbour.connect(addressOf(own))
    const outside = { host: '11.0.0.1', port: 9 }
    const offer = { outside, mapping: 'independent', streamId: 1 }
    const session = {
      usernameFragment: 'abcd',
      password: 'a'.repeat(22),
      fingerprint: new Uint8Array(32),
      candidates: [{ ...outside, priority: 1 }],
    }
    const requests = [
      [WEBRTC_METHOD, { session, mapping: null }],
      [PUNCH_METHOD, { kind: 'udp', token: new Uint8Array(TOKEN_BYTES), offer }],
    ] as const
    for (const [method, request] of requests) {
      const asked = neighbour.rpc.call(own.peerId, method, encodeCbor(request))
      await expect(asked).rejects.toMatchObject({ code: 'refused' })
    }
    expect(prepared).toEqual([])
    expect(recorded?.connections ?? []).toEqual([])
  })
})
