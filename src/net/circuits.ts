/**
 * Connections through relays (circuit relay v2), and the reservations by which others reach this node through one.
 *
 * libp2p's own client never renews a reservation that was lost, bans a relay after one failed attempt, and begins to
 * announce every relay that it is called through; this one leaves all that to `relays.ts`, and is the same on the wire.
 */
import type { Connection, ConnectionLimits, PeerId, Stream, Transport } from '@libp2p/interface'
import { transportSymbol } from '@libp2p/interface'
import { peerIdFromMultihash, peerIdFromString } from '@libp2p/peer-id'
import { lpStream } from '@libp2p/utils'
import { multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import * as Digest from 'multiformats/hashes/digest'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { isRelayed, peerOf, relayOf } from './addresses.ts'
import { CircuitConnection } from './circuit-connection.ts'
import type { Components, TransportFactories } from './libp2p-node.ts'
import {
  decodeHopStatus,
  decodeStopConnect,
  encodeHopRequest,
  encodeStopStatus,
  HOP_PROTOCOL,
  RELAY_MESSAGE_BYTES,
  RELAY_STATUS,
  STOP_PROTOCOL,
} from './relay-messages.ts'
import type { CircuitLimit, HopRequest, HopStatus } from './relay-messages.ts'

/** A reservation is made again when half of its time is over, or of this: a relay's clock may be wrong. */
const RESERVATION_MAX_MS = 12 * 3_600_000
const RESERVATION_MIN_MS = 120_000

export interface Reservation {
  relay: string
  /** `clock.now()` at which it is to be made again. */
  renewAt: number
}

export interface Circuits {
  reservations(): Reservation[]
  /** Makes a reservation with a connected relay, or makes it again. Rejects when the relay refuses. */
  reserve(relay: string, signal: AbortSignal): Promise<void>
  /** Beside whatever else is being dialled. */
  dial(address: Multiaddr, signal: AbortSignal): Promise<Connection>
  /** Takes no more calls through relays. */
  release(): void
  start(): Promise<void>
  stop(): Promise<void>
}

interface Held extends Reservation {
  connection: Connection
  addresses: Multiaddr[]
}

/** Dials `…/p2p/<relay>/p2p-circuit/p2p/<peer>`. */
export function circuitTransport(): TransportFactories[number] {
  return ({ connectionManager, logger }: Components): Transport => ({
    [transportSymbol]: true,
    [Symbol.toStringTag]: 'shoal-circuit',
    listenFilter: () => [],
    createListener: () => {
      throw new ShoalError('internal', 'a relay is not listened on: reserve instead')
    },
    dialFilter: (addresses) =>
      addresses.filter(
        (address) => isRelayed(address) && relayOf(address) !== undefined && peerOf(address),
      ),
    async dial(address, options) {
      const { signal } = options
      const [relayAddress = ''] = address.toString().split('/p2p-circuit')
      const peer = peerIdFromString(peerOf(address) ?? '')
      const relay = await relayConnection(connectionManager, multiaddr(relayAddress), signal)
      const answer = await request(
        relay,
        { type: 'connect', peer: peer.toMultihash().bytes },
        signal,
      )
      const connection = new CircuitConnection({
        stream: answer.stream,
        remoteAddr: address,
        direction: 'outbound',
        log: logger.forComponent('shoal:circuit'),
      })
      try {
        const limits = connectionLimits(answer.limit)
        const limited = limits === undefined ? {} : { limits }
        return await options.upgrader.upgradeOutbound(connection, { signal, ...limited })
      } catch (thrown) {
        connection.abort(new Error(messageOf(thrown)))
        throw thrown
      }
    },
  })
}

async function relayConnection(
  connections: Components['connectionManager'],
  address: Multiaddr,
  signal: AbortSignal,
): Promise<Connection> {
  const relay = peerOf(address)
  const open = connections
    .getConnections(peerIdFromString(relay ?? ''))
    .find(({ status, remoteAddr }) => status === 'open' && !isRelayed(remoteAddr))
  return open ?? (await connections.openConnection(address, { signal }))
}

/** A hop request that the relay has granted. Rejects with `refused` and its status otherwise. */
async function request(
  relay: Connection,
  hopRequest: HopRequest,
  signal: AbortSignal,
): Promise<HopStatus & { stream: Stream }> {
  const stream = await relay.newStream(HOP_PROTOCOL, {
    signal,
    maxOutboundStreams: LIMITS.connections,
  })
  try {
    const messages = lpStream(stream, { maxDataLength: RELAY_MESSAGE_BYTES })
    await messages.write(encodeHopRequest(hopRequest), { signal })
    const answer = decodeHopStatus((await messages.read({ signal })).subarray())
    if (answer.status !== RELAY_STATUS.ok) {
      throw new ShoalError('refused', `the relay refused with status ${answer.status}`)
    }
    return { ...answer, stream: messages.unwrap() }
  } catch (thrown) {
    stream.abort(new Error(messageOf(thrown)))
    throw thrown
  }
}

/** What libp2p calls a limited connection: only protocols that ask for it run there. */
function connectionLimits(limit: CircuitLimit | undefined): ConnectionLimits | undefined {
  if (limit === undefined) return undefined
  const { seconds, bytes } = limit
  return {
    ...(seconds !== undefined && { seconds }),
    ...(bytes !== undefined && { bytes: BigInt(bytes) }),
  }
}

/** Not started yet. */
export function createCircuits(components: Components, clock: Clock): Circuits {
  const { registrar, connectionManager, connectionGater, transportManager, events } = components
  const held = createHeldReservations(components)
  const stopping = new AbortController()
  return {
    reservations: () => held.all().map(({ relay, renewAt }) => ({ relay, renewAt })),
    async reserve(relay, signal) {
      const address = multiaddr(`/p2p/${relay}`)
      const connection = await relayConnection(connectionManager, address, signal)
      const { reservation, stream } = await request(connection, { type: 'reserve' }, signal)
      await stream.close({ signal })
      held.hold({
        relay,
        connection,
        addresses: circuitAddresses(reservation?.addresses ?? [], peerIdFromString(relay)),
        renewAt: clock.now() + lifetimeMs(reservation?.expiresSeconds) / 2,
      })
    },
    async dial(address, signal) {
      // libp2p's queue asks the gate; this is past it.
      if ((await connectionGater.denyDialMultiaddr?.(address)) === true) {
        throw new ShoalError('refused', 'this node dials through no relay')
      }
      return await transportManager.dial(address, { signal })
    },
    release: () => held.release(),
    async start() {
      events.addEventListener('connection:close', held.onClose)
      await registrar.handle(
        STOP_PROTOCOL,
        (stream, connection) => {
          const signal = clock.deadline(DEADLINES.relayMs, 'a relayed call', stopping.signal)
          takeCall(components, stream, connection, signal).catch((thrown: unknown) => {
            stream.abort(new Error(messageOf(thrown)))
          })
        },
        { maxInboundStreams: LIMITS.circuitsPerRelay },
      )
    },
    async stop() {
      stopping.abort()
      events.removeEventListener('connection:close', held.onClose)
      await registrar.unhandle(STOP_PROTOCOL)
    },
  }
}

interface HeldReservations {
  all(): Held[]
  /** Announces the addresses of a new reservation, in place of those of the relay's last. */
  hold(next: Held): void
  release(): void
  /** A reservation ends with the connection that it was made over. */
  readonly onClose: (event: CustomEvent<Connection>) => void
}

function createHeldReservations({ addressManager }: Components): HeldReservations {
  const held = new Map<string, Held>()

  function withdraw({ addresses }: Held, kept: readonly Multiaddr[] = []): void {
    for (const address of addresses) {
      if (!kept.some((other) => other.equals(address))) addressManager.removeObservedAddr(address)
    }
  }

  function drop(reservation: Held): void {
    held.delete(reservation.relay)
    withdraw(reservation)
  }

  return {
    all: () => [...held.values()],
    hold(next) {
      const previous = held.get(next.relay)
      held.set(next.relay, next)
      for (const address of next.addresses) {
        addressManager.confirmObservedAddr(address, { type: 'observed' })
      }
      if (previous !== undefined) withdraw(previous, next.addresses)
    },
    release() {
      for (const reservation of held.values()) drop(reservation)
    },
    onClose({ detail }) {
      for (const reservation of held.values()) {
        if (reservation.connection.id === detail.id) drop(reservation)
      }
    },
  }
}

/**
 * A relay asks whether this node takes a call. It does so without a reservation too: the relay of a peer that can dial
 * web ports only calls nodes that others just dial. The caller is authenticated as on any connection.
 */
async function takeCall(
  { upgrader, logger }: Components,
  stream: Stream,
  connection: Connection,
  signal: AbortSignal,
): Promise<void> {
  const messages = lpStream(stream, { maxDataLength: RELAY_MESSAGE_BYTES })
  const { peer, limit } = decodeStopConnect((await messages.read({ signal })).subarray())
  const caller = peerIdFromMultihash(Digest.decode(peer))
  await messages.write(encodeStopStatus(RELAY_STATUS.ok), { signal })
  const wire = new CircuitConnection({
    stream: messages.unwrap(),
    remoteAddr: calledFrom(connection, caller),
    direction: 'inbound',
    log: logger.forComponent('shoal:circuit'),
  })
  const limits = connectionLimits(limit)
  await upgrader.upgradeInbound(wire, { signal, ...(limits !== undefined && { limits }) })
}

function calledFrom(relay: Connection, caller: PeerId): Multiaddr {
  return relay.remoteAddr.encapsulate(`/p2p-circuit/p2p/${caller.toString()}`)
}

/** Malformed ones, and those of another peer, are left out; a relay that names none is known by its id. */
function circuitAddresses(addresses: readonly Uint8Array[], relay: PeerId): Multiaddr[] {
  const own = addresses.slice(0, LIMITS.peerAddresses).flatMap((bytes) => {
    try {
      const address = multiaddr(bytes)
      const peer = peerOf(address)
      if (isRelayed(address) || (peer !== undefined && peer !== relay.toString())) return []
      return [peer === undefined ? address.encapsulate(`/p2p/${relay.toString()}`) : address]
    } catch {
      return []
    }
  })
  const named = own.length > 0 ? own : [multiaddr(`/p2p/${relay.toString()}`)]
  return named.map((address) => address.encapsulate('/p2p-circuit'))
}

function lifetimeMs(expiresSeconds = 0): number {
  const leftMs = expiresSeconds * 1000 - Date.now()
  return Math.min(Math.max(leftMs, RESERVATION_MIN_MS), RESERVATION_MAX_MS)
}
