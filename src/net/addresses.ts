/** What a multiaddr says about a link. */
import { peerIdFromString } from '@libp2p/peer-id'
import { isPrivateIp } from '@libp2p/utils'
import { CODE_P2P, multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import { ShoalError } from '../errors.ts'
import type { FaultCode } from '../errors.ts'

const TRANSPORTS: ReadonlySet<string> = new Set([
  'tcp',
  'ws',
  'wss',
  'quic-v1',
  'webtransport',
  'webrtc',
  'webrtc-direct',
  'memory',
  'p2p-circuit',
])

/** Throws `code` (default `config_invalid`), naming `what` it was meant to be. */
export function parseAddress(
  text: string,
  what: string,
  code: FaultCode = 'config_invalid',
): Multiaddr {
  try {
    const address = multiaddr(text)
    if (address.getComponents().length === 0) throw new Error('empty')
    // A multiaddr takes any text for a peer id.
    const peer = peerOf(address)
    if (peer !== undefined) peerIdFromString(peer)
    return address
  } catch (cause) {
    throw new ShoalError(
      code,
      `${what} "${text.slice(0, 256)}" is not a multiaddr: write for example /ip4/192.0.2.7/tcp/4001`,
      { cause },
    )
  }
}

function namesOf(address: Multiaddr): string[] {
  return address.getComponents().map(({ name }) => name)
}

/** The peer an address ends at, if it says. */
export function peerOf(address: Multiaddr): string | undefined {
  return address.getComponents().findLast(({ code }) => code === CODE_P2P)?.value
}

/** The IP that an address starts with, without its zone; undefined for names and for what is no IP network. */
export function hostOf(address: Multiaddr): string | undefined {
  const [first, second] = address.getComponents()
  const ip = first?.name === 'ip6zone' ? second : first
  return ip?.name === 'ip4' || ip?.name === 'ip6' ? ip.value : undefined
}

/** The TCP port of an address. */
export function portOf(address: Multiaddr): number | undefined {
  const port = address.getComponents().find(({ name }) => name === 'tcp')?.value
  return port === undefined ? undefined : Number(port)
}

/** Whether packets go through a relay. WebRTC uses one only to set the connection up. */
export function isRelayed(address: Multiaddr): boolean {
  const names = namesOf(address)
  return names.includes('p2p-circuit') && !names.includes('webrtc')
}

export function isDirect(address: Multiaddr): boolean {
  return !isRelayed(address)
}

/** The peer that relays, of a relayed address. */
export function relayOf(address: Multiaddr): string | undefined {
  const components = address.getComponents()
  const circuit = components.findIndex(({ name }) => name === 'p2p-circuit')
  return components.slice(0, Math.max(0, circuit)).findLast(({ code }) => code === CODE_P2P)?.value
}

/** The same address on another machine, and there on another TCP port. */
export function withHost(address: Multiaddr, host: string, port?: number): Multiaddr {
  const components = address.getComponents()
  // A zone names an interface of this machine.
  const rest = components.slice(components[0]?.name === 'ip6zone' ? 2 : 1)
  const tail = rest.map(({ name, value }) => {
    if (name === 'tcp' && port !== undefined) return `/tcp/${port}`
    return value === undefined ? `/${name}` : `/${name}/${value}`
  })
  return multiaddr(`/${host.includes(':') ? 'ip6' : 'ip4'}/${host}${tail.join('')}`)
}

export function isIp6(address: Multiaddr): boolean {
  return hostOf(address)?.includes(':') === true
}

/** What one party most likely holds: /24 of IPv4, /48 of IPv6; of anything else the whole address. */
export function networkOf(address: Multiaddr): string {
  const host = hostOf(address)
  if (host === undefined) return address.toString()
  if (!host.includes(':')) return host.split('.').slice(0, 3).join('.')
  return (ip6Groups(host) ?? []).slice(0, 3).join(':')
}

/** The eight groups of an IPv6 address without a zone; undefined for what is none. */
function ip6Groups(host: string): number[] | undefined {
  const dotted = /^(.*:)(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(host)
  if (dotted !== null) {
    const [a = 256, b = 256, c = 256, d = 256] = dotted.slice(2).map(Number)
    if (Math.max(a, b, c, d) > 255) return undefined
    const tail = [(a << 8) | b, (c << 8) | d].map((group) => group.toString(16)).join(':')
    return ip6Groups(`${dotted[1]}${tail}`)
  }
  const [head = '', tail, ...more] = host.split('::')
  const parse = (text: string): string[] => (text === '' ? [] : text.split(':'))
  const first = parse(head)
  const last = parse(tail ?? '')
  const zeros = 8 - first.length - last.length
  const isLong = tail === undefined ? zeros !== 0 : zeros < 1
  if (isLong || more.length > 0) return undefined
  const groups = [...first, ...Array.from({ length: zeros }, () => '0'), ...last]
  if (!groups.every((group) => /^[\da-f]{1,4}$/i.test(group))) return undefined
  return groups.map((group) => Number.parseInt(group, 16))
}

/** An IP without a zone, which means something on one machine only. */
export function isIpHost(host: string): boolean {
  return host.includes(':') ? ip6Groups(host) !== undefined : isPrivateIp(host) !== undefined
}

/** Whether an IP cannot lead out of the networks at hand; translated ones (6to4, NAT64) can. */
export function isPrivateHost(host: string): boolean {
  const groups = ip6Groups(host)
  if (groups === undefined) return isPrivateIp(host) === true
  const mapped = mappedIp4(groups)
  if (mapped !== undefined) return isPrivateHost(mapped)
  const [first = 0] = groups
  const isLoopback = groups.every((group, index) => group === (index === 7 ? 1 : 0))
  return isLoopback || (first & 0xfe00) === 0xfc00 || (first & 0xffc0) === 0xfe80
}

/** Whether an IP is of the public internet: routed everywhere, and not kept for private or special use. */
export function isGlobalHost(host: string): boolean {
  const groups = ip6Groups(host)
  if (groups !== undefined) return isGlobalIp6(groups)
  return !/^(22[4-9]|23\d)\./.test(host) && !host.includes(':') && isPrivateIp(host) === false
}

/**
 * Of the global unicast block, 2000::/3, without what IANA's registry of special addresses takes from it: 2001::/23
 * (Teredo, benchmarking, identifiers), 2001:db8::/32 and 3fff::/20 (documentation), 2002::/16 (6to4, whose relays are
 * gone: RFC 7526). The private ranges of `@libp2p/utils` miss most of these when they are written with `::`.
 */
function isGlobalIp6(groups: readonly number[]): boolean {
  const mapped = mappedIp4(groups)
  if (mapped !== undefined) return isGlobalHost(mapped)
  const [first = 0, second = 0] = groups
  if (first === 0x2001) return second > 0x01ff && second !== 0xdb8
  if (first === 0x3fff) return second > 0x0fff
  return first >= 0x2000 && first <= 0x3fff && first !== 0x2002
}

/** The IPv4 address of `::ffff:a.b.c.d`. */
function mappedIp4(groups: readonly number[]): string | undefined {
  const [high = 0, low = 0] = groups.slice(6)
  const isMapped = groups.slice(0, 6).every((group, index) => group === (index === 5 ? 0xffff : 0))
  return isMapped ? [high >> 8, high & 255, low >> 8, low & 255].join('.') : undefined
}

/**
 * How far packets to an IP go: `loopback` stays on the machine, as what is sent to the unspecified address does; `none` is
 * of no single machine, or translated.
 */
export function rangeOf(host: string): 'global' | 'private' | 'loopback' | 'none' {
  const groups = ip6Groups(host)
  const mapped = groups && mappedIp4(groups)
  if (mapped !== undefined) return rangeOf(mapped)
  if (isGlobalHost(host)) return 'global'
  const isLoopback =
    groups === undefined
      ? /^(0|127)\./.test(host)
      : groups.every((group, index) => group <= (index === 7 ? 1 : 0))
  if (isLoopback) return 'loopback'
  const isMany = groups === undefined && /^(22[4-9]|2[345]\d)\./.test(host)
  return isPrivateHost(host) && !isMany ? 'private' : 'none'
}

/** Whether two IPs may be of one LAN: a /16 of IPv4, a /64 of IPv6. */
export function isNear(a: string, b: string): boolean {
  const [first, second] = [a, b].map((host) => ip6Groups(host)?.slice(0, 4).join(':'))
  if (first !== undefined || second !== undefined) return first === second
  return a.split('.').slice(0, 2).join('.') === b.split('.').slice(0, 2).join('.')
}

/** Whether an address leads to the public internet, directly. */
export function isGlobal(address: Multiaddr): boolean {
  const host = hostOf(address)
  return host !== undefined && isGlobalHost(host) && isDirect(address)
}

/** Whether a connection that came in from `address` shows that this node can be dialled by anybody: no relay helped. */
export function isUnaided(address: Multiaddr): boolean {
  const names = namesOf(address)
  return !names.includes('p2p-circuit') && !names.includes('webrtc')
}

/** The innermost transport: `ws` for TCP with WebSocket, `p2p-circuit` for a relayed link, `udx` for a punched UDP path. */
export function transportOf(address: Multiaddr): string {
  const names = namesOf(address)
  const transport = names.findLast((name) => TRANSPORTS.has(name))
  return transport ?? (names.includes('udp') ? 'udx' : 'unknown')
}
