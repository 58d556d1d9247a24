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
import type { FairQueue } from './fair-queue.ts'
import type { Offences } from './offences.ts'
import { createRateLimit } from './rate-limit.ts'
import type { RateLimit } from './rate-limit.ts'
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
import type { CircuitLimit, HopRequest, HopStatus, RelayStatus } from './relay-messages.ts'

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
  offences: Pick<Offences, 'note'>
}

/** A reservation lasts as long as its connection. Half a day for clocks that go wrong, and for peers that ask for less. */
const RESERVATION_SECONDS = 12 * 3600
/** One IP, such as a carrier's NAT, gets this share of the places at most. */
const HOST_SHARE = 1 / 4
/** Of one peer: a swarm of some dozen members that all meet again at once. */
const REQUESTS_PER_MINUTE = 120
/** Beyond, requests are refused, and from here on an offence: a larger swarm asks more often, and means no harm. */
const REFUSALS_PER_MINUTE = 360

interface Reservation {
  host: string | undefined
}

interface Circuit {
  from: string
  to: string
}

/** What the functions below share. */
interface Relay extends RelayServerOptions {
  reservations: Map<string, Reservation>
  circuits: Set<Circuit>
  queue: FairQueue
  requests: RateLimit
  refusals: RateLimit
  /** Told to both ends of each circuit. */
  limit: CircuitLimit
  stopping: AbortSignal
  bytesRelayed: number
}

export async function createRelayServer(options: RelayServerOptions): Promise<RelayServer> {
  const { libp2p, limits, clock, logger, metrics } = options
  const stopping = new AbortController()
  const relay: Relay = {
    ...options,
    reservations: new Map(),
    circuits: new Set(),
    queue: createFairQueue(limits.bytesPerSecond, clock),
    requests: createRateLimit({ perMinute: REQUESTS_PER_MINUTE, clock }),
    refusals: createRateLimit({ perMinute: REFUSALS_PER_MINUTE, clock }),
    limit: { seconds: Math.ceil(limits.circuitMs / 1000), bytes: limits.circuitBytes },
    stopping: stopping.signal,
    bytesRelayed: 0,
  }
  const onDisconnect = ({ detail }: CustomEvent<PeerId>): void => {
    relay.reservations.delete(detail.toString())
  }
  libp2p.addEventListener('peer:disconnect', onDisconnect)
  await libp2p.handle(
    HOP_PROTOCOL,
    (stream, connection) => {
      answer(relay, stream, connection).catch((thrown: unknown) => {
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
      reservations: relay.reservations.size,
      circuits: relay.circuits.size,
      bytes: relay.bytesRelayed,
    }),
    async stop() {
      stopping.abort()
      relay.queue.stop()
      libp2p.removeEventListener('peer:disconnect', onDisconnect)
      await libp2p.unhandle(HOP_PROTOCOL)
    },
  }
}

async function answer(relay: Relay, stream: Stream, connection: Connection): Promise<void> {
  const signal = relay.clock.deadline(DEADLINES.relayMs, 'a relay request', relay.stopping)
  const messages = lpStream(stream, { maxDataLength: RELAY_MESSAGE_BYTES })
  const request = decodeHopRequest((await messages.read({ signal })).subarray())
  const outcome = await decide(relay, request, connection, signal)
  if (!('target' in outcome)) {
    relay.metrics.add('relay_requests_total', 1, outcome.label)
    await messages.write(encodeHopStatus(outcome.status), { signal })
    await stream.close({ signal })
    return
  }
  const { circuit, target } = outcome
  try {
    const status = { status: RELAY_STATUS.ok, limit: relay.limit }
    await messages.write(encodeHopStatus(status), { signal }).catch((thrown: unknown) => {
      target.abort(new Error(messageOf(thrown)))
      throw thrown
    })
    relay.metrics.add('relay_requests_total', 1, 'connected')
    await join(relay, circuit, messages.unwrap(), target)
  } finally {
    relay.circuits.delete(circuit)
  }
}

type RequestLabel = 'reserved' | 'refused' | 'full' | 'flood'

/** An answer and its label in the metrics, or a circuit, which takes its place from now on, to be joined. */
type Outcome = { status: HopStatus; label: RequestLabel } | { circuit: Circuit; target: Stream }

async function decide(
  relay: Relay,
  request: HopRequest,
  connection: Connection,
  signal: AbortSignal,
): Promise<Outcome> {
  const refuse = (status: RelayStatus, label: RequestLabel): Outcome => ({
    status: { status },
    label,
  })
  const from = connection.remotePeer
  if (isRelayed(connection.remoteAddr)) return refuse(RELAY_STATUS.permissionDenied, 'refused')
  if (!relay.requests.allows(from.toString())) {
    if (!relay.refusals.allows(from.toString())) {
      relay.offences.note(from.toString(), 'flood', 'too many requests to the relay')
    }
    return refuse(RELAY_STATUS.resourceLimitExceeded, 'flood')
  }
  if (request.type === 'reserve') {
    const status = reserve(relay, connection)
    return status === undefined
      ? refuse(RELAY_STATUS.reservationRefused, 'full')
      : { status, label: 'reserved' }
  }
  if (request.type !== 'connect' || request.peer === undefined) {
    return refuse(RELAY_STATUS.unexpectedMessage, 'refused')
  }
  const to = peerIdFromMultihash(Digest.decode(request.peer))
  const circuit: Circuit = { from: from.toString(), to: to.toString() }
  if (!isFree(relay, circuit)) return refuse(RELAY_STATUS.resourceLimitExceeded, 'full')
  relay.circuits.add(circuit)
  const target = await open(relay, from, to, signal).catch((thrown: unknown) => {
    relay.circuits.delete(circuit)
    throw thrown
  })
  if (typeof target !== 'number') return { circuit, target }
  relay.circuits.delete(circuit)
  return refuse(target, 'refused')
}

/** Undefined when there is no place left. */
function reserve(relay: Relay, connection: Connection): HopStatus | undefined {
  const { limits, reservations, limit } = relay
  const peer = connection.remotePeer.toString()
  const host = hostOf(connection.remoteAddr)
  const ofHost = [...reservations.values()].filter((other) => other.host === host).length
  const isFull =
    reservations.size >= limits.reservations ||
    (host !== undefined && ofHost >= Math.max(1, limits.reservations * HOST_SHARE))
  if (isFull && !reservations.has(peer)) return undefined
  reservations.set(peer, { host })
  const addresses = relay.addresses().map(({ bytes }) => bytes)
  // The protocol dates reservations by the wall clock.
  const expiresSeconds = Math.round(Date.now() / 1000) + RESERVATION_SECONDS
  return { status: RELAY_STATUS.ok, limit, reservation: { expiresSeconds, addresses } }
}

function isFree({ circuits, limits }: Relay, { from, to }: Circuit): boolean {
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
  { libp2p, limits, limit, reach }: Relay,
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

async function join(relay: Relay, circuit: Circuit, source: Stream, target: Stream): Promise<void> {
  const { limits, queue, clock, logger, metrics } = relay
  const fault = await joinCircuit({
    from: { peer: circuit.from, stream: source },
    to: { peer: circuit.to, stream: target },
    maxBytes: limits.circuitBytes,
    maxMs: limits.circuitMs,
    queue,
    clock,
    signal: relay.stopping,
    onBytes: (count) => {
      relay.bytesRelayed += count
      metrics.add('relay_bytes_total', count)
    },
  })
  if (fault?.code !== 'limit_exceeded' && fault?.code !== 'timeout') return
  metrics.add('relay_circuits_cut_total', 1, fault.code)
  logger.info('circuit_cut', { ...circuit, message: fault.message })
}
