import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import {
  hostOf,
  isDirect,
  isUnaided,
  parseAddress,
  peerOf,
  transportOf,
} from '../../../src/net/addresses.ts'

const A = '12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN'
const B = '12D3KooWA768LzHMatxkjD1f9DrYW375GZJr6MHPCNEdDtHeTNRt'

describe('an address', () => {
  test.each([
    [`/ip4/192.0.2.1/tcp/4001/p2p/${A}`, 'tcp', '192.0.2.1', A, true, true],
    ['/ip6/2001:db8::1/tcp/4001/ws', 'ws', '2001:db8::1', undefined, true, true],
    ['/dns4/example.org/tcp/443/wss', 'wss', undefined, undefined, true, true],
    [`/memory/x/p2p/${B}`, 'memory', undefined, B, true, true],
    [
      `/ip4/192.0.2.1/tcp/1/p2p/${A}/p2p-circuit/p2p/${B}`,
      'p2p-circuit',
      '192.0.2.1',
      B,
      false,
      false,
    ],
    [
      `/ip4/192.0.2.1/tcp/1/p2p/${A}/p2p-circuit/webrtc/p2p/${B}`,
      'webrtc',
      '192.0.2.1',
      B,
      true,
      false,
    ],
    ['/ip4/192.0.2.1/udp/1/quic-v1', 'quic-v1', '192.0.2.1', undefined, true, true],
  ])('%s says what it is', (text, transport, host, peer, direct, unaided) => {
    const address = multiaddr(text)
    expect(transportOf(address)).toBe(transport)
    expect(hostOf(address)).toBe(host)
    expect(peerOf(address)).toBe(peer)
    expect(isDirect(address)).toBe(direct)
    expect(isUnaided(address)).toBe(unaided)
  })

  test.each(['', '/', 'x', '/ip4/1.2.3.4/tcp', '/p2p/12D3KooWTypo'])(
    '%j is refused with what it was meant to be',
    (text) => {
      expect(() => parseAddress(text, 'bootstrap address')).toThrow(
        expect.objectContaining({
          code: 'config_invalid',
          message: expect.stringContaining('bootstrap address'),
        }),
      )
      expect(() => parseAddress(text, 'address', 'link_invalid')).toThrow(
        expect.objectContaining({ code: 'link_invalid' }),
      )
    },
  )
})
