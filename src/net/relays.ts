/**
 * Keeps a node that nobody can dial within reach: reservations with two relays, renewed and replaced as they go.
 *
 * Relays are public peers that serve; they are found among the neighbours and, by a well-known CID, through the DHT.
 * libp2p makes a reservation once and never again after it was lost, so this looks after them itself. A node that others
 * have dialled gives its places back.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { CID } from 'multiformats/cid'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Random } from '../random.ts'
import { cidOf } from '../store/content.ts'
import { isRelayed } from './addresses.ts'
import type { Circuits } from './circuits.ts'
import type { Discovery } from './network.ts'
import { HOP_PROTOCOL } from './relay-messages.ts'
import { RPC_PROTOCOLS } from './rpc.ts'

/** Reservations held: when one relay goes, the other still leads here. */
const WANTED = 2
const TICK_MS = 1_000
/** For the first neighbour to dial back: who can be dialled needs no relay. */
const PATIENCE_MS = 1_500
/** After a relay has refused or failed, doubled each time. */
const REST_FIRST_MS = 2_000
const REST_MAX_MS = 120_000
/** Between two look-ups in the DHT while relays are wanting, doubled each time. */
const SEARCH_FIRST_MS = 3_000
const SEARCH_MAX_MS = 300_000
/** A relay that is asked this often whether it is there keeps the NAT's way to it open, and is missed soon. */
const PING_MS = 10_000
const PING_DEADLINE_MS = 5_000
/** Questions in a row that a relay may leave unanswered: fewer while another one answers. */
const SILENCES = 4
const SILENCES_BESIDE_OTHERS = 2

/** What all relays are announced under. */
export function relayCid(): Promise<CID> {
  return cidOf(new TextEncoder().encode('/shoal/relay/1'), 'raw')
}

export interface RelaysOptions {
  libp2p: Pick<Libp2p, 'getConnections' | 'getPeers' | 'dial' | 'peerStore'>
  circuits: Pick<Circuits, 'reservations' | 'reserve' | 'release'>
  discovery: Pick<Discovery, 'find'>
  /** Rejects when no answer comes in time; the connection is given up then. */
  ping: (connection: Connection, signal: AbortSignal) => Promise<unknown>
  /** Whether others have dialled this node: then it needs no relay. */
  isPublic: () => boolean
  clock: Clock
  random: Random
  logger: Logger
}

export interface Relays {
  /** Peer ids of the relays through which this node can be dialled. */
  held(): string[]
  stop(): void
}

interface Rest {
  until: number
  ms: number
}

export function createRelays(options: RelaysOptions): Relays {
  const { circuits, clock, logger } = options
  const stopping = new AbortController()
  const rests = new Map<string, Rest>()
  const silences = new WeakMap<Connection, number>()
  let reported: readonly string[] = []

  async function run(): Promise<void> {
    let search = { at: clock.now() + PATIENCE_MS, ms: SEARCH_FIRST_MS }
    let pingAt = clock.now() + PING_MS
    let patientUntil: number | undefined
    for (;;) {
      await clock.sleep(TICK_MS, stopping.signal)
      const now = clock.now()
      report()
      if (options.isPublic()) {
        circuits.release()
        continue
      }
      const isConnected = options.libp2p.getPeers().length > 0
      patientUntil = isConnected ? (patientUntil ?? now + PATIENCE_MS) : undefined
      if (patientUntil === undefined || now < patientUntil) continue
      if (now >= pingAt) {
        pingAt = now + PING_MS
        await pingAll(options, silences, stopping.signal)
      }
      await reserveMissing(options, rests, stopping.signal)
      if (heldBy(options).length >= WANTED) {
        search = { at: now, ms: SEARCH_FIRST_MS }
      } else if (now >= search.at) {
        search = { at: now + search.ms, ms: Math.min(2 * search.ms, SEARCH_MAX_MS) }
        await findMore(options, stopping.signal)
      }
    }
  }

  function report(): void {
    const held = heldBy(options)
    for (const relay of held) {
      if (!reported.includes(relay)) logger.info('relay_reserved', { relay })
    }
    for (const relay of reported) {
      if (!held.includes(relay)) logger.info('relay_lost', { relay })
    }
    reported = held
  }

  run().catch((thrown: unknown) => {
    if (!stopping.signal.aborted) logger.error('relays_failed', { message: messageOf(thrown) })
  })
  return {
    held: () => heldBy(options),
    stop: () => stopping.abort(),
  }
}

function heldBy({ circuits }: RelaysOptions): string[] {
  return circuits.reservations().map(({ relay }) => relay)
}

async function reserveMissing(
  options: RelaysOptions,
  rests: Map<string, Rest>,
  signal: AbortSignal,
): Promise<void> {
  const { circuits, clock, random, logger } = options
  const now = clock.now()
  const held = heldBy(options)
  const due = circuits.reservations().filter(({ renewAt }) => renewAt <= now)
  const candidates = (await neighbouringRelays(options)).filter((relay) => !held.includes(relay))
  // Any of them: a swarm spreads over its relays. Relays of other programs carry some kilobytes, enough to punch a hole.
  const ours = new Set(await neighbouringRelays(options, [RPC_PROTOCOLS.control]))
  const shuffled = Array.from({ length: candidates.length }, () =>
    candidates.splice(random.integer(candidates.length), 1),
  )
    .flat()
    .toSorted((a, b) => Number(ours.has(b)) - Number(ours.has(a)))
  for (const relay of [...due.map((reservation) => reservation.relay), ...shuffled]) {
    signal.throwIfAborted()
    if (!held.includes(relay) && heldBy(options).length >= WANTED) return
    if ((rests.get(relay)?.until ?? 0) > now) continue
    try {
      const limit = clock.deadline(DEADLINES.relayMs, 'a reservation', signal)
      await circuits.reserve(relay, limit)
      rests.delete(relay)
    } catch (thrown) {
      const ms = Math.min(2 * (rests.get(relay)?.ms ?? REST_FIRST_MS / 2), REST_MAX_MS)
      rests.set(relay, { until: clock.now() + ms, ms })
      logger.debug('relay_refused', { relay, message: messageOf(thrown) })
    }
  }
}

/** Connected directly, and serving, these protocols too. */
export async function neighbouringRelays(
  { libp2p }: { libp2p: Pick<Libp2p, 'getConnections' | 'peerStore'> },
  protocols: readonly string[] = [],
): Promise<string[]> {
  const needed = [HOP_PROTOCOL, ...protocols]
  const peers = new Set(
    libp2p
      .getConnections()
      .filter(({ status, remoteAddr }) => status === 'open' && !isRelayed(remoteAddr))
      .map(({ remotePeer }) => remotePeer.toString()),
  )
  const serving: string[] = []
  for (const peer of peers) {
    const known = await libp2p.peerStore.get(peerIdFromString(peer)).catch(() => undefined)
    if (needed.every((protocol) => known?.protocols.includes(protocol))) serving.push(peer)
  }
  return serving
}

/** Connects to relays that the DHT knows; the next round reserves. */
async function findMore(
  { libp2p, discovery, clock, logger }: RelaysOptions,
  signal: AbortSignal,
): Promise<void> {
  let connected = 0
  for await (const peer of discovery.find(await relayCid(), { signal })) {
    if (libp2p.getConnections(peerIdFromString(peer)).length > 0) continue
    try {
      const limit = clock.deadline(DEADLINES.dialMs, 'connecting to a relay', signal)
      await libp2p.dial(peerIdFromString(peer), { signal: limit })
      if (++connected >= WANTED) return
    } catch (thrown) {
      logger.debug('relay_unreachable', { relay: peer, message: messageOf(thrown) })
    }
  }
}

/**
 * A connection to a relay that does not answer leads nowhere: it is given up, and with it the reservation. Not at once: a
 * busy machine is late, the relay's or this one.
 */
async function pingAll(
  options: RelaysOptions,
  silences: WeakMap<Connection, number>,
  stopping: AbortSignal,
): Promise<void> {
  const { libp2p, ping, clock, logger } = options
  const connections = heldBy(options).flatMap((relay) =>
    libp2p.getConnections(peerIdFromString(relay)),
  )
  const answers = await Promise.allSettled(
    connections.map((connection) =>
      ping(connection, clock.deadline(PING_DEADLINE_MS, 'asking a relay', stopping)),
    ),
  )
  stopping.throwIfAborted()
  const isOneThere = answers.some(({ status }) => status === 'fulfilled')
  for (const [index, connection] of connections.entries()) {
    const isSilent = answers[index]?.status === 'rejected'
    const silent = isSilent ? (silences.get(connection) ?? 0) + 1 : 0
    silences.set(connection, silent)
    if (silent < (isOneThere ? SILENCES_BESIDE_OTHERS : SILENCES)) continue
    logger.info('relay_silent', { relay: connection.remotePeer.toString() })
    connection.abort(new Error('the relay does not answer'))
  }
}
