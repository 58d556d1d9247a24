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

/** The IP that an address starts with; undefined for names and for what is no IP network. */
export function hostOf(address: Multiaddr): string | undefined {
  const [first] = address.getComponents()
  return first?.name === 'ip4' || first?.name === 'ip6' ? first.value : undefined
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

/** The same address on another machine. */
export function withHost(address: Multiaddr, host: string): Multiaddr {
  const [, ...rest] = address.getComponents()
  const tail = rest.map(({ name, value }) =>
    value === undefined ? `/${name}` : `/${name}/${value}`,
  )
  return multiaddr(`/${host.includes(':') ? 'ip6' : 'ip4'}/${host}${tail.join('')}`)
}

export function isIpHost(host: string): boolean {
  return isPrivateIp(host) !== undefined
}

/** Whether an IP is of the public internet: routed everywhere, and not kept for private or special use. */
export function isGlobalHost(host: string): boolean {
  const isMulticast = /^(22[4-9]|23\d)\.|^ff/i.test(host)
  return !isMulticast && isPrivateIp(host) === false
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
