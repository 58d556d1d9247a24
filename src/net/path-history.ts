/** How the paths to each peer came and went: a relayed one first, say, and then a direct one in its place. */
import type { Connection, Libp2p } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import { isDirect, transportOf } from './addresses.ts'

/** Of one peer. */
const PATHS = 8
const PEERS = 2 * LIMITS.connections

export interface PathRecord {
  transport: string
  direct: boolean
  openedAgoMs: number
  /** Null while it is open. */
  closedAgoMs: number | null
}

export interface PathHistory {
  /** Oldest first. */
  of(peer: string): PathRecord[]
  stop(): void
}

interface Entry {
  connection: Connection | undefined
  transport: string
  direct: boolean
  openedAt: number
  closedAt: number | undefined
}

export function createPathHistory({
  libp2p,
  clock,
}: {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener'>
  clock: Clock
}): PathHistory {
  // A map keeps the order of insertion: who was connected last goes last.
  const peers = new Map<string, Entry[]>()

  const onOpen = ({ detail }: CustomEvent<Connection>): void => {
    const peer = detail.remotePeer.toString()
    const entries = peers.get(peer) ?? []
    const { remoteAddr } = detail
    entries.push({
      connection: detail,
      transport: transportOf(remoteAddr),
      direct: isDirect(remoteAddr),
      openedAt: clock.now(),
      closedAt: undefined,
    })
    peers.delete(peer)
    peers.set(peer, entries.slice(-PATHS))
    const [oldest] = peers.keys()
    if (peers.size > PEERS && oldest !== undefined) peers.delete(oldest)
  }
  const onClose = ({ detail }: CustomEvent<Connection>): void => {
    const entries = peers.get(detail.remotePeer.toString()) ?? []
    const entry = entries.find(({ connection }) => connection === detail)
    if (entry === undefined) return
    entry.closedAt = clock.now()
    entry.connection = undefined
  }
  libp2p.addEventListener('connection:open', onOpen)
  libp2p.addEventListener('connection:close', onClose)

  return {
    of(peer) {
      const now = clock.now()
      return (peers.get(peer) ?? []).map(({ transport, direct, openedAt, closedAt }) => ({
        transport,
        direct,
        openedAgoMs: now - openedAt,
        closedAgoMs: closedAt === undefined ? null : now - closedAt,
      }))
    },
    stop() {
      libp2p.removeEventListener('connection:open', onOpen)
      libp2p.removeEventListener('connection:close', onClose)
    },
  }
}
