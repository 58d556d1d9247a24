/** Who may be talked to at all. */
import type { ConnectionGater } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { hostOf, isPrivateHost, isRelayed } from './addresses.ts'
import type { Offences } from './offences.ts'

export interface GateOptions {
  offences: Pick<Offences, 'isBanned'>
  /** Only addresses that are not of the internet, and no relays. */
  isLanOnly: boolean
}

export function createGate({ offences, isLanOnly }: GateOptions): ConnectionGater {
  const isOutside = (address: Multiaddr): boolean => {
    if (isRelayed(address)) return true
    const [first] = address.getComponents()
    const host = hostOf(address)
    return first?.name.startsWith('dns') === true || (host !== undefined && !isPrivateHost(host))
  }
  return {
    denyDialPeer: (peer) => offences.isBanned(peer.toString()),
    denyDialMultiaddr: (address) => isLanOnly && isOutside(address),
    // Also of what is dialled past the queue, through relays.
    denyOutboundConnection: (_peer, { remoteAddr }) => isLanOnly && isOutside(remoteAddr),
    denyInboundConnection: ({ remoteAddr }) => isLanOnly && isOutside(remoteAddr),
    denyInboundEncryptedConnection: (peer) => offences.isBanned(peer.toString()),
    denyOutboundEncryptedConnection: (peer) => offences.isBanned(peer.toString()),
  }
}
