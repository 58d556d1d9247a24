/** What a multiaddr says about a link. */
import { peerIdFromString } from '@libp2p/peer-id'
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

/** False when packets go through a relay. WebRTC uses one only to set the connection up. */
export function isDirect(address: Multiaddr): boolean {
  const names = namesOf(address)
  return !names.includes('p2p-circuit') || names.includes('webrtc')
}

/** Whether a connection that came in from `address` shows that this node can be dialled by anybody: no relay helped. */
export function isUnaided(address: Multiaddr): boolean {
  const names = namesOf(address)
  return !names.includes('p2p-circuit') && !names.includes('webrtc')
}

/** The innermost transport: `ws` for TCP with WebSocket, `p2p-circuit` for a relayed link. */
export function transportOf(address: Multiaddr): string {
  return namesOf(address).findLast((name) => TRANSPORTS.has(name)) ?? 'unknown'
}
