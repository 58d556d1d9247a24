/**
 * Whether others can dial this node. The one proof is a connection that came in without a relay's help; to get it, a node
 * asks each new neighbour for one (`net/dial-back`).
 *
 * A neighbour must not become a tool to dial third parties: it dials only the IP address that the caller is seen at, on
 * a new connection, authenticated as the caller, and rarely.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Multiaddr } from '@multiformats/multiaddr'
import { multiaddr } from '@multiformats/multiaddr'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import { decodeCbor, encodeCbor } from '../store/content.ts'
import { hostOf, isUnaided, peerOf } from './addresses.ts'
import type { PeerRpc, RpcContext } from './network.ts'

const METHOD = 'net/dial-back'
const MESSAGE_BYTES = 8192
/** Between two requests of one peer, and requests served at once. */
const INTERVAL_MS = 60_000
const AT_ONCE = 8
/** Peers whose last request is remembered. */
const PEERS = 1024

const requestSchema = z.strictObject({
  addresses: z.array(z.string().max(256)).min(1).max(LIMITS.peerAddresses),
})
const replySchema = z.strictObject({ reached: z.string().max(256) })

export interface ReachabilityOptions {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener' | 'getConnections' | 'dial'>
  rpc: PeerRpc
  clock: Clock
  logger: Logger
  /** All addresses this node listens on, announced or not. */
  listenAddresses: () => Multiaddr[]
  /** Called with a listen address that was reached: from now on it is announced. */
  onReached: (address: Multiaddr) => void
  onPublic: () => void
}

export interface Reachability {
  isPublic(): boolean
  /** Asks a neighbour to dial back, unless that is known or was asked lately. */
  ask(peer: string): void
  stop(): void
}

export function createReachability(options: ReachabilityOptions): Reachability {
  const { libp2p, rpc, clock, logger } = options
  const stopping = new AbortController()
  const askedAt = new Map<string, number>()
  let proven = false

  const onConnection = ({ detail }: CustomEvent<Connection>): void => {
    if (proven || detail.direction !== 'inbound' || !isUnaided(detail.remoteAddr)) return
    proven = true
    logger.info('network_reachable', { from: detail.remoteAddr.toString() })
    options.onPublic()
  }
  libp2p.addEventListener('connection:open', onConnection)
  const removeHandler = rpc.handle(METHOD, createDialBack(libp2p, clock))

  async function ask(peer: string): Promise<void> {
    // Only IP networks have addresses that can be compared with where a peer is seen.
    const own = options.listenAddresses().filter((address) => hostOf(address) !== undefined)
    if (own.length === 0) return
    const request = {
      addresses: own.slice(0, LIMITS.peerAddresses).map((address) => address.toString()),
    }
    const reply = await rpc.call(peer, METHOD, encodeCbor(request), {
      signal: stopping.signal,
      deadlineMs: DEADLINES.dialBackMs + DEADLINES.rpcMs,
    })
    const { reached } = replySchema.parse(decodeCbor(reply, MESSAGE_BYTES))
    // Believed only about addresses that this node has itself: a liar gains nothing.
    const address = own.find((candidate) => candidate.toString() === reached)
    if (address !== undefined) options.onReached(address)
  }

  return {
    isPublic: () => proven,
    ask(peer) {
      if (proven || stopping.signal.aborted || !isDue(askedAt, peer, clock.now())) return
      ask(peer).catch((thrown: unknown) => {
        logger.debug('dial_back_failed', { peer, message: messageOf(thrown) })
      })
    },
    stop() {
      stopping.abort()
      removeHandler()
      libp2p.removeEventListener('connection:open', onConnection)
    },
  }
}

/** Once per peer and interval; the peers that asked longest ago are forgotten first. */
function isDue(times: Map<string, number>, peer: string, now: number): boolean {
  const last = times.get(peer)
  if (last !== undefined && now - last < INTERVAL_MS) return false
  times.delete(peer)
  times.set(peer, now)
  const [oldest] = times.keys()
  if (times.size > PEERS && oldest !== undefined) times.delete(oldest)
  return true
}

function createDialBack(
  libp2p: ReachabilityOptions['libp2p'],
  clock: Clock,
): (request: Uint8Array, context: RpcContext) => Promise<Uint8Array> {
  const servedAt = new Map<string, number>()
  let dialling = 0

  return async (request, { peer, signal }) => {
    const parsed = requestSchema.safeParse(decodeCbor(request, MESSAGE_BYTES))
    if (!parsed.success) throw new ShoalError('message_invalid', `malformed "${METHOD}" request`)
    const candidates = dialable(parsed.data.addresses, peer, seenAt(libp2p, peer))
    if (candidates.length === 0) {
      throw new ShoalError('refused', 'none of the addresses has the IP that you are seen at')
    }
    if (dialling >= AT_ONCE || !isDue(servedAt, peer, clock.now())) {
      throw new ShoalError('limit_exceeded', `ask again in ${INTERVAL_MS} ms`)
    }
    dialling++
    try {
      const limit = clock.deadline(DEADLINES.dialBackMs, 'dialling back', signal)
      const connection = await libp2p.dial(candidates, { force: true, signal: limit })
      const reached = connection.remoteAddr.toString()
      await connection.close({ signal: limit })
      return encodeCbor({ reached })
    } catch (cause) {
      throw new ShoalError('peer_unreachable', `could not dial back: ${messageOf(cause)}`, {
        cause,
      })
    } finally {
      dialling--
    }
  }
}

/** IPs from which a peer has dialled this node itself. */
function seenAt(libp2p: ReachabilityOptions['libp2p'], peer: string): Set<string | undefined> {
  const inbound = libp2p
    .getConnections(peerIdFromString(peer))
    .filter(({ direction, remoteAddr }) => direction === 'inbound' && isUnaided(remoteAddr))
  return new Set(inbound.map(({ remoteAddr }) => hostOf(remoteAddr)))
}

function dialable(
  texts: readonly string[],
  peer: string,
  hosts: ReadonlySet<string | undefined>,
): Multiaddr[] {
  return texts.flatMap((text) => {
    try {
      const address = multiaddr(text)
      const host = hostOf(address)
      const isCallers = host !== undefined && hosts.has(host) && peerOf(address) === peer
      return isCallers && isUnaided(address) ? [address] : []
    } catch {
      return []
    }
  })
}
