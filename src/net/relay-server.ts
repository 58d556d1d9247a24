/**
 * Serves as a relay (circuit relay v2) for peers that cannot be dialled.
 *
 * A peer reserves a place over a connection that it keeps open; others then reach it through this node, and the two of
 * them encrypt end to end. Peers that need no place are reached as well: by dialling them, for callers who cannot (a
 * network that lets nothing out but the web). Guarantees: stated limits on places, circuits, bytes and time, told to both ends; one rate
 * shared fairly by the peers that send; a circuit that is cut is a fault at both ends (`circuit.ts`).
 */
import type { Connection, Libp2p, PeerId, Stream } from '@libp2p/interface'
import { peerIdFromMultihash } from '@libp2p/peer-id'
import { lpStream } from '@libp2p/utils'
import type { Multiaddr } from '@multiformats/multiaddr'
import * as Digest from 'multiformats/hashes/digest'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { hostOf, isRelayed } from './addresses.ts'
import { joinCircuit } from './circuit.ts'
import { createFairQueue } from './fair-queue.ts'
import { createRateLimit } from './rate-limit.ts'
import {
  decodeHopRequest,
  decodeStopStatus,
  encodeHopStatus,
  encodeStopConnect,
  HOP_PROTOCOL,
  RELAY_MESSAGE_BYTES,
  RELAY_STATUS,
  STOP_PROTOCOL,
} from './relay-messages.ts'
import type { CircuitLimit, HopStatus, RelayStatus } from './relay-messages.ts'

/** What a relay gives, all in all and to each. */
export interface RelayLimits {
  /** Peers that may be reached through this node. */
  reservations: number
  /** Relayed connections at once, of all peers, and of one. */
  circuits: number
  circuitsPerPeer: number
  /** Of one relayed connection, both directions together. */
  circuitBytes: number
  circuitMs: number
  /** Of all relayed connections together. */
  bytesPerSecond: number
}

export interface RelayUse {
  reservations: number
  circuits: number
  bytes: number
}

export interface RelayServer {
  readonly limits: RelayLimits
  use(): RelayUse
  stop(): Promise<void>
}

export interface RelayServerOptions {
  libp2p: Pick<
    Libp2p,
    'handle' | 'unhandle' | 'getConnections' | 'addEventListener' | 'removeEventListener'
  >
  limits: RelayLimits
  /** The addresses under which the peers shall tell others to come. */
  addresses: () => Multiaddr[]
  /** A direct connection to a peer that others can dial: not everybody who calls can. */
  reach: (peer: PeerId, signal: AbortSignal) => Promise<Connection>
  clock: Clock
  logger: Logger
  metrics: Metrics
}

/** A reservation lasts as long as its connection. Half a day for clocks that go wrong, and for peers that ask for less. */
const RESERVATION_SECONDS = 12 * 3600
/** One IP, such as a carrier's NAT, gets this share of the places at most. */
const HOST_SHARE = 1 / 4
/** Of one peer: a swarm of some dozen members that all meet again at once. */
const REQUESTS_PER_MINUTE = 120

interface Reservation {
  host: string | undefined
}

interface Circuit {
  from: string
  to: string
}

// oxlint-disable-next-line max-lines-per-function -- closures over one state; to be split
export async function createRelayServer(options: RelayServerOptions): Promise<RelayServer> {
  const { libp2p, limits, reach, clock, logger, metrics } = options
  const reservations = new Map<string, Reservation>()
  const circuits = new Set<Circuit>()
  const stopping = new AbortController()
  const queue = createFairQueue(limits.bytesPerSecond, clock)
  const requests = createRateLimit({ perMinute: REQUESTS_PER_MINUTE, clock })
  let bytesRelayed = 0
  const limit: CircuitLimit = {
    seconds: Math.ceil(limits.circuitMs / 1000),
    bytes: limits.circuitBytes,
  }

  const onDisconnect = ({ detail }: CustomEvent<PeerId>): void => {
    reservations.delete(detail.toString())
  }
  libp2p.addEventListener('peer:disconnect', onDisconnect)

  /** Undefined when there is no place left. */
  function reserve(connection: Connection): HopStatus | undefined {
    const peer = connection.remotePeer.toString()
    const host = hostOf(connection.remoteAddr)
    const ofHost = [...reservations.values()].filter((other) => other.host === host).length
    const isFull =
      reservations.size >= limits.reservations ||
      (host !== undefined && ofHost >= Math.max(1, limits.reservations * HOST_SHARE))
    if (isFull && !reservations.has(peer)) return undefined
    reservations.set(peer, { host })
    const addresses = options.addresses().map(({ bytes }) => bytes)
    // The protocol dates reservations by the wall clock.
    const expiresSeconds = Math.round(Date.now() / 1000) + RESERVATION_SECONDS
    return { status: RELAY_STATUS.ok, limit, reservation: { expiresSeconds, addresses } }
  }

  function isFree({ from, to }: Circuit): boolean {
    const ofCaller = [...circuits].filter((circuit) => circuit.from === from).length
    const ofCalled = [...circuits].filter((circuit) => circuit.to === to).length
    return (
      circuits.size < limits.circuits &&
      ofCaller < limits.circuitsPerPeer &&
      // A popular peer leaves half of all circuits to the others.
      ofCalled < Math.max(limits.circuitsPerPeer, limits.circuits / 2)
    )
  }

  /** The stream to the called peer, or why there is none. */
  async function open(
    from: PeerId,
    to: PeerId,
    signal: AbortSignal,
  ): Promise<Stream | RelayStatus> {
    const connection = libp2p
      .getConnections(to)
      .find(({ status, remoteAddr }) => status === 'open' && !isRelayed(remoteAddr))
    const reached = connection ?? (await reach(to, signal).catch(() => undefined))
    if (reached === undefined) return RELAY_STATUS.noReservation
    const stream = await reached.newStream(STOP_PROTOCOL, {
      signal,
      maxOutboundStreams: limits.circuits,
    })
    try {
      const messages = lpStream(stream, { maxDataLength: RELAY_MESSAGE_BYTES })
      await messages.write(encodeStopConnect(from.toMultihash().bytes, limit), { signal })
      const status = decodeStopStatus((await messages.read({ signal })).subarray())
      if (status !== RELAY_STATUS.ok) throw new Error(`the peer answered ${status}`)
      return messages.unwrap()
    } catch (thrown) {
      stream.abort(new Error(messageOf(thrown)))
      return RELAY_STATUS.connectionFailed
    }
  }

  async function answer(stream: Stream, connection: Connection): Promise<void> {
    const signal = clock.deadline(DEADLINES.relayMs, 'a relay request', stopping.signal)
    const messages = lpStream(stream, { maxDataLength: RELAY_MESSAGE_BYTES })
    const reply = (status: HopStatus): Promise<void> =>
      messages.write(encodeHopStatus(status), { signal })
    const refuse = async (status: RelayStatus, label: string): Promise<void> => {
      metrics.add('relay_requests_total', 1, label)
      await reply({ status })
      await stream.close({ signal })
    }
    const request = decodeHopRequest((await messages.read({ signal })).subarray())
    const from = connection.remotePeer
    if (isRelayed(connection.remoteAddr)) {
      return await refuse(RELAY_STATUS.permissionDenied, 'refused')
    }
    if (!requests.allows(from.toString())) {
      return await refuse(RELAY_STATUS.resourceLimitExceeded, 'flood')
    }
    if (request.type === 'reserve') {
      const status = reserve(connection)
      if (status === undefined) return await refuse(RELAY_STATUS.reservationRefused, 'full')
      metrics.add('relay_requests_total', 1, 'reserved')
      await reply(status)
      return await stream.close({ signal })
    }
    if (request.type !== 'connect' || request.peer === undefined) {
      return await refuse(RELAY_STATUS.unexpectedMessage, 'refused')
    }
    const to = peerIdFromMultihash(Digest.decode(request.peer))
    const circuit: Circuit = { from: from.toString(), to: to.toString() }
    if (!isFree(circuit)) return await refuse(RELAY_STATUS.resourceLimitExceeded, 'full')
    circuits.add(circuit)
    try {
      const target = await open(from, to, signal)
      if (typeof target === 'number') return await refuse(target, 'refused')
      await reply({ status: RELAY_STATUS.ok, limit }).catch((thrown: unknown) => {
        target.abort(new Error(messageOf(thrown)))
        throw thrown
      })
      metrics.add('relay_requests_total', 1, 'connected')
      await join(circuit, messages.unwrap(), target)
    } finally {
      circuits.delete(circuit)
    }
  }

  async function join(circuit: Circuit, source: Stream, target: Stream): Promise<void> {
    const fault = await joinCircuit({
      from: { peer: circuit.from, stream: source },
      to: { peer: circuit.to, stream: target },
      maxBytes: limits.circuitBytes,
      maxMs: limits.circuitMs,
      queue,
      clock,
      signal: stopping.signal,
      onBytes: (count) => {
        bytesRelayed += count
        metrics.add('relay_bytes_total', count)
      },
    })
    if (fault?.code !== 'limit_exceeded' && fault?.code !== 'timeout') return
    metrics.add('relay_circuits_cut_total', 1, fault.code)
    logger.info('circuit_cut', { ...circuit, message: fault.message })
  }

  await libp2p.handle(
    HOP_PROTOCOL,
    (stream, connection) => {
      answer(stream, connection).catch((thrown: unknown) => {
        metrics.add('relay_requests_total', 1, 'failed')
        logger.debug('relay_request_failed', { message: messageOf(thrown) })
        stream.abort(new Error(messageOf(thrown)))
      })
    },
    { maxInboundStreams: limits.circuitsPerPeer + 4 },
  )

  return {
    limits,
    use: () => ({
      reservations: reservations.size,
      circuits: circuits.size,
      bytes: bytesRelayed,
    }),
    async stop() {
      stopping.abort()
      queue.stop()
      libp2p.removeEventListener('peer:disconnect', onDisconnect)
      await libp2p.unhandle(HOP_PROTOCOL)
    },
  }
}
