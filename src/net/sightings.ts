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
  /** Of these, the one that most networks see, by IPv4 and by IPv6 each; several when they are even. */
  likelyHosts(): string[]
  /** Whether this node is known to be seen at this IP. */
  isCorroborated(host: string): boolean
  /** Networks that the neighbours are in, and the one of this neighbour. */
  networks(): Set<string>
  networkOf(peer: string): string | undefined
}

export function createSightings(): Sightings {
  const sightings = new Map<string, Sighting>()
  const hosts = (): string[] => {
    const all = [...sightings.values()].map(({ seen }) => hostOf(seen) ?? '')
    const outside = all.filter((host) => isGlobalHost(host))
    return [...new Set(outside.length > 0 ? outside : all)].filter((host) => host !== '')
  }
  /** Networks of all that say anything, and of those that agree. */
  const votes = (host: string): { all: number; agreeing: number } => {
    const witnesses = [...sightings.values()].filter(({ seen, from }) =>
      isWitness(host, seen, from),
    )
    const agreeing = witnesses.filter(({ seen }) => hostOf(seen) === host)
    return { all: networksOf(witnesses).size, agreeing: networksOf(agreeing).size }
  }
  return {
    note: (peer, sighting) => void sightings.set(peer, sighting),
    forget: (peer) => void sightings.delete(peer),
    of: (peer) => sightings.get(peer),
    peers: () => [...sightings.keys()],
    hosts,
    likelyHosts: () =>
      hosts().filter((host) => {
        const rivals = hosts().filter((other) => other.includes(':') === host.includes(':'))
        return rivals.every((rival) => votes(rival).agreeing <= votes(host).agreeing)
      }),
    isCorroborated(host) {
      const { all, agreeing } = votes(host)
      return agreeing >= NETWORKS && 2 * agreeing > all
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
