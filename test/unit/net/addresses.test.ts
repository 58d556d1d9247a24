import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import {
  hostOf,
  isDirect,
  isGlobalHost,
  isIpHost,
  isNear,
  isPrivateHost,
  isUnaided,
  networkOf,
  parseAddress,
  peerOf,
  rangeOf,
  transportOf,
  withHost,
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

describe('an IP', () => {
  test.each<[string, string]>([
    ['127.0.0.1', 'loopback'],
    ['127.8.0.1', 'loopback'],
    ['::1', 'loopback'],
    ['0:0:0:0:0:0:0:1', 'loopback'],
    ['::ffff:127.0.0.1', 'loopback'],
    ['::ffff:7f00:1', 'loopback'],
    ['0.0.0.0', 'loopback'],
    ['::', 'loopback'],
    ['192.168.1.1', 'private'],
    ['100.64.0.1', 'private'],
    ['::ffff:10.0.0.1', 'private'],
    ['fe80::1', 'private'],
    ['fd00::1', 'private'],
    ['11.0.0.1', 'global'],
    ['::ffff:11.0.0.1', 'global'],
    ['2606:4700::1111', 'global'],
    ['224.0.0.251', 'none'],
    ['::ffff:239.0.0.1', 'none'],
    ['255.255.255.255', 'none'],
    ['ff02::fb', 'none'],
    ['::127.0.0.1', 'none'],
    ['64:ff9b::7f00:1', 'none'],
    ['2002:7f00:1::', 'none'],
  ])('%s is of the range: %s', (host, range) => {
    expect(rangeOf(host)).toBe(range)
  })

  test.each<[string, string, boolean]>([
    ['192.168.1.1', '192.168.7.2', true],
    ['192.168.1.1', '192.169.1.1', false],
    ['fd00:0:0:1::1', 'fd00::1:1:1:1:1', true],
    ['fd00:0:0:1::1', 'fd00:0:0:2::1', false],
    ['10.0.0.1', 'fd00::1', false],
  ])('%s is near %s: %s', (a, b, isTrue) => {
    expect(isNear(a, b)).toBe(isTrue)
  })

  test.each([
    '1.1.1.1',
    '11.0.0.1',
    '2a00:1450:4001:82b::200e',
    '2606:4700::1111',
    '2001:4860:4860::8888',
    '2001:200::1',
    '3fff:1000::1',
    '::ffff:1.1.1.1',
    '::ffff:101:101',
  ])('%s is of the internet', (host) => {
    expect(isIpHost(host)).toBe(true)
    expect(isGlobalHost(host)).toBe(true)
    expect(isGlobalHost(host.toUpperCase())).toBe(true)
    expect(isPrivateHost(host)).toBe(false)
  })

  test.each([
    ['10.0.0.1', true],
    ['100.64.0.1', true],
    ['169.254.1.1', true],
    ['127.0.0.1', true],
    ['192.0.2.1', true],
    ['224.0.0.1', false],
    ['::', false],
    ['::1', true],
    ['fe80::1', true],
    ['febf:1:2:3:4:5:6:7', true],
    ['fec0::1', false],
    ['fc00::1', true],
    ['fd12:3456:789a::1', true],
    ['fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', true],
    ['ff02::1', false],
    ['2001:db8::1', false],
    ['2001:db8:ffff:ffff:ffff:ffff:ffff:ffff', false],
    ['3fff:fff::1', false],
    ['2001::1', false],
    ['2001:0:4136:e378:8000:63bf:3fff:fdd2', false],
    ['2002:c000:204::1', false],
    ['64:ff9b::102:304', false],
    ['64:ff9b::1.2.3.4', false],
    ['100::1', false],
    ['4000::1', false],
    ['::ffff:10.0.0.1', true],
    ['::ffff:a00:1', true],
  ])('%s is not (kept to the networks at hand: %s)', (host, isPrivate) => {
    expect(isIpHost(host)).toBe(true)
    expect(isGlobalHost(host)).toBe(false)
    expect(isPrivateHost(host)).toBe(isPrivate)
  })

  test.each([
    '',
    'x',
    '1.2.3',
    '1.2.3.256',
    ':',
    ':::',
    '1::2::3',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '1:2:3:4:5:6:7:8::',
    '12345::',
    'g::1',
    '::ffff:1.2.3.256',
    'fe80::1%eth0',
    '2a00::1%2',
  ])('%j is none', (text) => {
    expect(isIpHost(text)).toBe(false)
    expect(isGlobalHost(text)).toBe(false)
  })

  test('with a zone is known without it, and moves to another machine without it', () => {
    const address = multiaddr('/ip6zone/eth0/ip6/fe80::1/tcp/4010')
    expect(hostOf(address)).toBe('fe80::1')
    expect(withHost(address, '2a00::1').toString()).toBe('/ip6/2a00::1/tcp/4010')
    expect(withHost(address, '1.1.1.1', 7).toString()).toBe('/ip4/1.1.1.1/tcp/7')
  })

  test.each([
    ['/ip4/11.0.0.1/tcp/1', '/ip4/11.0.0.254/tcp/2/ws', true],
    ['/ip4/11.0.0.1/tcp/1', '/ip4/11.0.1.1/tcp/1', false],
    ['/ip6/2a00:1:2:3::1/tcp/1', '/ip6/2a00:1:2:4::9/tcp/1', true],
    ['/ip6/2a00:1:2::1/tcp/1', '/ip6/2a00:1:3::1/tcp/1', false],
    ['/memory/a', '/memory/b', false],
  ])('of %s and %s: one network, %s', (first, second, isOne) => {
    expect(networkOf(multiaddr(first)) === networkOf(multiaddr(second))).toBe(isOne)
  })
})
