/**
 * Where neighbours say that they see this node. One of them may lie, to have others dial a third party, or to be left
 * alone with this node: what one network says is a guess, what most of at least two say is believed.
 */
import type { Multiaddr } from '@multiformats/multiaddr'
import { hostOf, isGlobal, isGlobalHost, networkOf } from './addresses.ts'

/** Neighbours of so many networks, and more than half of all that say anything, must agree. */
const NETWORKS = 2

export interface Sighting {
  /** Where the neighbour sees this node. */
  seen: Multiaddr
  /** Where this node sees the neighbour. */
  from: Multiaddr
}

export interface Sightings {
  note(peer: string, sighting: Sighting): void
  forget(peer: string): void
  of(peer: string): Sighting | undefined
  peers(): string[]
  /** IPs that neighbours see; those on the internet, if there are any, say what others can use. */
  hosts(): string[]
  /** Whether this node is known to be seen at this IP. */
  isCorroborated(host: string): boolean
  /** Networks that the neighbours are in, and the one of this neighbour. */
  networks(): Set<string>
  networkOf(peer: string): string | undefined
}

export function createSightings(): Sightings {
  const sightings = new Map<string, Sighting>()
  return {
    note: (peer, sighting) => void sightings.set(peer, sighting),
    forget: (peer) => void sightings.delete(peer),
    of: (peer) => sightings.get(peer),
    peers: () => [...sightings.keys()],
    hosts() {
      const hosts = [...sightings.values()].map(({ seen }) => hostOf(seen) ?? '')
      const outside = hosts.filter((host) => isGlobalHost(host))
      return [...new Set(outside.length > 0 ? outside : hosts)].filter((host) => host !== '')
    },
    isCorroborated(host) {
      const witnesses = [...sightings.values()].filter(({ seen, from }) =>
        isWitness(host, seen, from),
      )
      const agreeing = witnesses.filter(({ seen }) => hostOf(seen) === host)
      const networks = networksOf(agreeing).size
      return networks >= NETWORKS && 2 * networks > networksOf(witnesses).size
    },
    networks: () => networksOf(sightings.values()),
    networkOf(peer) {
      const from = sightings.get(peer)?.from
      return from && networkOf(from)
    },
  }
}

/** Says anything about how this IP's kind of network sees this node: who is on the LAN does not know the internet. */
function isWitness(host: string, seen: Multiaddr, from: Multiaddr): boolean {
  const isSameFamily = host.includes(':') === hostOf(seen)?.includes(':')
  return isSameFamily && (isGlobal(from) || !isGlobalHost(host))
}

function networksOf(sightings: Iterable<Sighting>): Set<string> {
  return new Set([...sightings].map(({ from }) => networkOf(from)))
}
