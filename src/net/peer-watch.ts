/** Which Shoal peers are connected: a peer counts once it is identified and speaks peer RPC. */
import type { Connection, IdentifyResult, PeerId } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Random } from '../random.ts'
import type { Libp2pNode } from './libp2p-node.ts'
import { pingConnection } from './ping.ts'
import { RPC_PROTOCOLS } from './rpc.ts'

/** Between attempts to identify a peer whose answer was lost, and how many. */
const RETRY_MS = 8_000
const RETRIES = 3
/** Neighbours asked at once whether they have become DHT servers. */
const ASKED = 3

export interface PeerWatch {
  connected(): string[]
  onConnect(listener: PeerListener): () => void
  onDisconnect(listener: PeerListener): () => void
  /** `clock.now()` when the connection was opened. */
  openedAt(connection: Connection): number
  /** Asks a few neighbours for their protocols again: a pushed update may have been lost. */
  identifyAgain(): Promise<void>
}

type PeerListener = (peer: string) => void

export interface PeerWatchOptions {
  libp2p: Libp2pNode
  clock: Clock
  random: Random
  logger: Logger
  stopping: AbortSignal
  /** Called before the listeners. */
  onIdentified: (peer: PeerId) => void
}

/** To be called before libp2p starts. */
export function createPeerWatch(options: PeerWatchOptions): PeerWatch {
  const { libp2p, clock, random, logger } = options
  const connected = new Set<string>()
  const connectListeners = new Set<PeerListener>()
  const disconnectListeners = new Set<PeerListener>()
  const openedAt = new WeakMap<Connection, number>()

  libp2p.addEventListener('connection:open', ({ detail }: CustomEvent<Connection>) => {
    openedAt.set(detail, clock.now())
    void retryIdentify(detail, () => connected.has(detail.remotePeer.toString()), options)
  })
  libp2p.addEventListener('peer:identify', ({ detail }: CustomEvent<IdentifyResult>) => {
    const peer = detail.peerId.toString()
    const isOurs = detail.protocols.includes(RPC_PROTOCOLS.control)
    if (!isOurs || connected.has(peer) || libp2p.getConnections(detail.peerId).length === 0) return
    connected.add(peer)
    void measure(detail.connection, options)
    options.onIdentified(detail.peerId)
    notify(connectListeners, peer)
  })
  libp2p.addEventListener('peer:disconnect', ({ detail }: CustomEvent<PeerId>) => {
    if (connected.delete(detail.toString())) notify(disconnectListeners, detail.toString())
  })

  function notify(listeners: Iterable<PeerListener>, peer: string): void {
    for (const listener of listeners) {
      try {
        listener(peer)
      } catch (thrown) {
        logger.error('peer_listener_failed', { message: messageOf(thrown) })
      }
    }
  }

  return {
    connected: () => [...connected],
    onConnect(listener) {
      connectListeners.add(listener)
      for (const peer of connected) notify([listener], peer)
      return () => connectListeners.delete(listener)
    },
    onDisconnect(listener) {
      disconnectListeners.add(listener)
      return () => disconnectListeners.delete(listener)
    },
    openedAt: (connection) => openedAt.get(connection) ?? clock.now(),
    async identifyAgain() {
      const connections = libp2p.getConnections()
      const chosen = Array.from({ length: Math.min(ASKED, connections.length) }, () =>
        connections.splice(random.integer(connections.length), 1),
      )
      const { identify } = libp2p.services
      await Promise.allSettled(chosen.flat().map((connection) => identify.identify(connection)))
    },
  }
}

/** The round-trip time of a new link; later the connection monitor keeps it up to date. */
async function measure(
  connection: Connection,
  { clock, stopping }: PeerWatchOptions,
): Promise<void> {
  const signal = clock.deadline(DEADLINES.dialMs, 'pinging', stopping)
  try {
    // libp2p's own would dial once more where there is only a relayed connection.
    const rttMs = await pingConnection(connection, clock, signal)
    connection.rtt ??= rttMs
  } catch {
    // Nobody waits for it.
  }
}

/** libp2p identifies a new connection once; on a busy machine the answer may come too late. */
async function retryIdentify(
  connection: Connection,
  isDone: () => boolean,
  { libp2p, clock, stopping }: PeerWatchOptions,
): Promise<void> {
  for (let attempt = 0; attempt < RETRIES; attempt++) {
    try {
      await clock.sleep(RETRY_MS, stopping)
    } catch {
      return
    }
    if (isDone() || connection.status !== 'open') return
    await libp2p.services.identify.identify(connection).catch(() => {})
  }
}
