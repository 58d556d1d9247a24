/**
 * Notices paths that have died silently, and relayed connections that nobody needs any more.
 *
 * A NAT that has forgotten a connection, a cut cable or a gone relay sends no farewell: calls would wait for their
 * deadlines, round after round. A path that has been silent while calls wait is asked for a sign of life. If none comes,
 * the peer may be busy, or the path dead; the proof is another path on which the peer does answer. Then the silent one is
 * given up, its calls fail at once, and those that may be repeated go on over the other.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import type { Logger } from '../log.ts'
import { isRelayed, relayOf } from './addresses.ts'
import { knownAddresses, sharedRelays } from './peer-dial.ts'
import type { RpcService } from './rpc.ts'

const TICK_MS = 500
/** Silence with calls waiting that makes a path suspect. Calls that are meant to wait long are answered meanwhile. */
const SILENCE_MS = 3_000
const PING_MS = 2_000
const DIAL_MS = 6_000
/** A path that has shown life is not suspect again for this long. */
const TRUST_MS = 3_000
/** Between the last use of a relayed connection and its end, once there is a direct one. */
const LINGER_MS = 3_000

export interface PathWatchOptions {
  libp2p: Pick<Libp2p, 'getConnections' | 'dial' | 'peerStore'>
  rpc: Pick<RpcService, 'silent' | 'isUsed'>
  ping: (connection: Connection, signal: AbortSignal) => Promise<unknown>
  openedAt: (connection: Connection) => number
  clock: Clock
  logger: Logger
}

export function createPathWatch(options: PathWatchOptions): { stop(): void } {
  const { libp2p, rpc, clock, logger } = options
  const stopping = new AbortController()
  const trustedUntil = new WeakMap<Connection, number>()
  const suspects = new Set<Connection>()
  const unusedSince = new WeakMap<Connection, number>()

  async function judge(connection: Connection): Promise<void> {
    const isAlive = await examine(connection, options, stopping.signal)
    suspects.delete(connection)
    if (isAlive) trustedUntil.set(connection, clock.now() + TRUST_MS)
  }

  async function run(): Promise<void> {
    for (;;) {
      await clock.sleep(TICK_MS, stopping.signal)
      const now = clock.now()
      for (const { connection, since } of rpc.silent()) {
        const isTrusted = (trustedUntil.get(connection) ?? 0) > now
        if (now - since < SILENCE_MS || isTrusted || suspects.has(connection)) continue
        suspects.add(connection)
        void judge(connection)
      }
      for (const connection of libp2p.getConnections()) endUnused(connection, now)
    }
  }

  /** Frees the relay, once all calls have moved to the direct connection. */
  function endUnused(connection: Connection, now: number): void {
    const isNeeded =
      !isRelayed(connection.remoteAddr) ||
      rpc.isUsed(connection) ||
      !libp2p.getConnections(connection.remotePeer).some(isOpenAndDirect)
    if (isNeeded) {
      unusedSince.delete(connection)
      return
    }
    const since = unusedSince.get(connection) ?? now
    unusedSince.set(connection, since)
    if (now - since < LINGER_MS) return
    connection.close().catch((cause: Error) => connection.abort(cause))
  }

  run().catch((thrown: unknown) => {
    if (!stopping.signal.aborted) logger.error('path_watch_failed', { message: messageOf(thrown) })
  })
  return { stop: () => stopping.abort() }
}

function isOpenAndDirect({ status, remoteAddr }: Connection): boolean {
  return status === 'open' && !isRelayed(remoteAddr)
}

/** Whether the path is to be kept. Never rejects. */
async function examine(
  connection: Connection,
  options: PathWatchOptions,
  stopping: AbortSignal,
): Promise<boolean> {
  const { ping, clock, logger } = options
  const answers = async (path: Connection): Promise<boolean> => {
    try {
      await ping(path, clock.deadline(PING_MS, 'a sign of life', stopping))
      return true
    } catch {
      return false
    }
  }
  if (await answers(connection)) return true
  const other = await otherPath(connection, options, stopping)
  if (other === undefined) return false
  // Both at once: they must be judged by the same moment.
  const [isThere, isAlive] = await Promise.all([answers(other), answers(connection)])
  if (!isThere) return false
  if (connection.status !== 'open' || isAlive) return true
  logger.info('path_dead', {
    peer: connection.remotePeer.toString(),
    address: connection.remoteAddr.toString(),
  })
  connection.abort(new Error('the peer answers on another path, and not on this one'))
  return false
}

/** Another connection to the peer, made if need be: through relays first, because they are there for that. */
async function otherPath(
  dead: Connection,
  { libp2p, clock }: PathWatchOptions,
  stopping: AbortSignal,
): Promise<Connection | undefined> {
  const peer = dead.remotePeer
  const open = libp2p
    .getConnections(peer)
    .find((connection) => connection !== dead && connection.status === 'open')
  if (open !== undefined) return open
  const addresses = (await knownAddresses(libp2p, peer)).filter(
    (address) => address.toString() !== dead.remoteAddr.toString(),
  )
  const relays = await sharedRelays(libp2p, peer)
  const deadRelay = relayOf(dead.remoteAddr)
  const candidates = [
    ...relays.filter((address) => relayOf(address) !== deadRelay),
    ...addresses.filter((address) => isRelayed(address) && relayOf(address) !== deadRelay),
    ...addresses.filter((address) => !isRelayed(address)),
  ]
  if (candidates.length === 0) return undefined
  try {
    const limit = clock.deadline(DIAL_MS, 'finding another path', stopping)
    return await libp2p.dial(candidates, { force: true, signal: limit })
  } catch {
    return undefined
  }
}
