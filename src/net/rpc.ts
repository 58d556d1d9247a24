/**
 * Peer RPC over libp2p: `/shoal/rpc/1/control` and `/shoal/rpc/1/bulk`.
 *
 * The caller opens one stream per peer and lane and keeps it; requests carry ids, so that any number are under way at
 * once (one stream per request costs a round trip and is 8 to 40 times slower). The called side keeps its own streams
 * for its own requests. A stream that drops fails its calls with `peer_unreachable`; the next call opens another.
 */
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import { abortReason } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { isDirect } from './addresses.ts'
import { createExpiry } from './expiry.ts'
import type { Expiry } from './expiry.ts'
import type { FrameChannel, FrameChannelOptions } from './frame-channel.ts'
import { isMethodName } from './frame.ts'
import type { Lane, PeerRpc, RpcHandler } from './network.ts'
import type { Offences } from './offences.ts'
import { RpcCall } from './rpc-call.ts'
import type { CallRequest } from './rpc-call.ts'
import { createRpcCaller } from './rpc-caller.ts'
import type { RpcCaller } from './rpc-caller.ts'
import { serveRpc } from './rpc-server.ts'

export const RPC_PROTOCOLS: Record<Lane, string> = {
  control: '/shoal/rpc/1/control',
  bulk: '/shoal/rpc/1/bulk',
}

const LANES = ['control', 'bulk'] as const
const PROTOCOLS: ReadonlySet<string> = new Set(Object.values(RPC_PROTOCOLS))

export interface RpcServiceOptions {
  libp2p: Pick<Libp2p, 'handle' | 'unhandle'>
  /** A live connection to the peer, dialled if need be. */
  connectionTo: (peer: string, signal: AbortSignal) => Promise<Connection>
  clock: Clock
  logger: Logger
  metrics: Metrics
  offences: Pick<Offences, 'note'>
  stallMs?: number | undefined
}

/** A connection on which calls have been waiting. */
export interface SilentLink {
  connection: Connection
  /** `clock.now()` when something was heard last, or the first of the calls was made. */
  since: number
}

export interface RpcService extends PeerRpc {
  /** A connection has opened: if it is direct, calls from now on use it, and those under way on a relayed one end there. */
  migrate(to: Connection): void
  silent(): SilentLink[]
  /** Streams of calls on a connection, either way. */
  isUsed(connection: Connection): boolean
  stop(): Promise<void>
}

export async function createRpcService(options: RpcServiceOptions): Promise<RpcService> {
  const { libp2p, clock } = options
  const handlers = new Map<string, RpcHandler>()
  const stopping = new AbortController()
  const callers = new Callers(options, stopping.signal)
  const served = createServed(options, handlers)

  const streamOptions = {
    maxInboundStreams: LIMITS.rpcStreamsPerPeer,
    maxOutboundStreams: LIMITS.rpcStreamsPerPeer,
    // A relayed link is a data path like any other.
    runOnLimitedConnection: true,
  }
  for (const lane of LANES) {
    const accept = (stream: Stream, connection: Connection): void =>
      served.accept(stream, connection.remotePeer.toString(), lane)
    await libp2p.handle(RPC_PROTOCOLS[lane], accept, streamOptions)
  }

  return {
    handle(method, handler) {
      if (!isMethodName(method)) throw new ShoalError('internal', `"${method}" is no method name`)
      if (handlers.has(method)) throw new ShoalError('internal', `"${method}" is handled already`)
      handlers.set(method, handler)
      return () => {
        if (handlers.get(method) === handler) handlers.delete(method)
      }
    },
    call(peer, method, payload, { lane = 'control', repeatable = false, ...rest } = {}) {
      const { deadlineMs = lane === 'bulk' ? DEADLINES.chunkMs : DEADLINES.rpcMs } = rest
      const { signal, into } = rest
      const expiresAtMs = clock.now() + deadlineMs
      const limits = { deadlineMs, expiresAtMs, signal }
      return callers.call({ peer, lane, method, payload, repeatable, into, ...limits })
    },
    migrate({ remotePeer, remoteAddr }) {
      if (isDirect(remoteAddr)) callers.leaveRelay(remotePeer.toString())
    },
    silent: () => callers.silent(),
    isUsed: ({ streams }) =>
      streams.some(({ protocol, status }) => PROTOCOLS.has(protocol) && status === 'open'),
    async stop() {
      const fault = new ShoalError('aborted', 'the node is stopping')
      stopping.abort(fault)
      callers.end(fault)
      served.end(fault)
      await libp2p.unhandle(LANES.map((lane) => RPC_PROTOCOLS[lane]))
    },
  }
}

interface CallerSlot {
  /** Both undefined while it opens. */
  caller: RpcCaller | undefined
  connection: Connection | undefined
  /** Calls that came meanwhile. */
  early: Set<RpcCall>
}

/** Streams that may break under a call, and the pause before another: a path to the peer may have to be found first. */
const LOSSES = { once: 1, repeatable: 3 }
const PAUSE_MS = 300

/** One caller per peer and lane. */
class Callers {
  readonly #options: RpcServiceOptions
  readonly #stopping: AbortSignal
  readonly #slots: Record<Lane, Map<string, CallerSlot>> = { control: new Map(), bulk: new Map() }
  /** Those whose stream is open, retired ones included. */
  readonly #live = new Map<RpcCaller, Connection>()
  readonly #unsettled: Expiry<RpcCall>

  constructor(options: RpcServiceOptions, stopping: AbortSignal) {
    this.#options = options
    this.#stopping = stopping
    this.#unsettled = createExpiry(options.clock, (call: RpcCall) => call.expire())
  }

  call(request: CallRequest): Promise<Uint8Array> {
    const call = new RpcCall(request, this.#onSettled)
    const settlement = call.settlement()
    if (call.isSettled) return settlement
    if (this.#stopping.aborted) call.reject(abortReason(this.#stopping))
    else {
      this.#unsettled.add(call)
      this.#submit(call)
    }
    return settlement
  }

  leaveRelay(peer: string): void {
    for (const lane of LANES) {
      const slot = this.#slots[lane].get(peer)
      if (slot?.connection === undefined || isDirect(slot.connection.remoteAddr)) continue
      this.#slots[lane].delete(peer)
      slot.caller?.retire()
    }
  }

  silent(): SilentLink[] {
    return [...this.#live].flatMap(([caller, connection]) => {
      const since = caller.silentSince()
      return since === undefined ? [] : [{ connection, since }]
    })
  }

  end(fault: ShoalError): void {
    for (const call of this.#unsettled) call.reject(fault)
    this.#unsettled.stop()
    for (const caller of this.#live.keys()) caller.end(fault)
  }

  readonly #onSettled = (call: RpcCall): void => this.#unsettled.delete(call)

  #submit(call: RpcCall): void {
    const slot = this.#slots[call.lane].get(call.peer) ?? this.#open(call.lane, call.peer)
    if (slot.caller !== undefined) return slot.caller.submit(call)
    if (slot.early.size >= LIMITS.rpcCallsWaiting) {
      const message = `${slot.early.size} calls wait for a connection to the peer`
      return call.reject(new ShoalError('limit_exceeded', message))
    }
    slot.early.add(call)
    call.onAbandoned = () => slot.early.delete(call)
  }

  #open(lane: Lane, peer: string): CallerSlot {
    const slot: CallerSlot = { caller: undefined, connection: undefined, early: new Set() }
    this.#slots[lane].set(peer, slot)
    void this.#fill(slot, lane, peer)
    return slot
  }

  async #fill(slot: CallerSlot, lane: Lane, peer: string): Promise<void> {
    const { clock, metrics, offences, stallMs = DEADLINES.rpcStallMs } = this.#options
    const onEnd = (caller: RpcCaller): void => {
      this.#live.delete(caller)
      if (this.#slots[lane].get(peer) === slot) this.#slots[lane].delete(peer)
    }
    try {
      const { stream, connection } = await openStream(this.#options, lane, peer, this.#stopping)
      const onLost = this.#onLost
      const onDrop = offenceOf(offences, peer)
      const caller = createRpcCaller({ stream, clock, metrics, stallMs, onLost, onEnd, onDrop })
      slot.caller = caller
      slot.connection = connection
      this.#live.set(caller, connection)
      for (const call of slot.early) caller.submit(call)
      if (this.#stopping.aborted) caller.end(asFault(abortReason(this.#stopping)))
    } catch (thrown) {
      if (this.#slots[lane].get(peer) === slot) this.#slots[lane].delete(peer)
      for (const call of slot.early) {
        // The peer was reached before: another path may be found.
        if (call.isHanded) this.#onLost(call, asFault(thrown))
        else call.reject(asFault(thrown))
      }
    }
    slot.early.clear()
  }

  /** Again on a fresh stream, but what may have reached the other side only if that may happen twice. */
  readonly #onLost = (call: RpcCall, fault: ShoalError): void => {
    const mostLosses = call.repeatable ? LOSSES.repeatable : LOSSES.once
    const isFinal = call.isHanded && !call.repeatable
    if (isFinal || call.losses >= mostLosses || this.#stopping.aborted) return call.reject(fault)
    call.losses++
    call.onAbandoned = undefined
    if (call.losses === 1) return this.#submit(call)
    this.#options.clock.sleep(PAUSE_MS * 2 ** call.losses, this.#stopping).then(
      () => call.isSettled || this.#submit(call),
      () => {},
    )
  }
}

async function openStream(
  { connectionTo, clock }: RpcServiceOptions,
  lane: Lane,
  peer: string,
  stopping: AbortSignal,
): Promise<{ stream: Stream; connection: Connection }> {
  const signal = clock.deadline(DEADLINES.dialMs, 'connecting', stopping)
  try {
    const connection = await connectionTo(peer, signal)
    const stream = await connection.newStream(RPC_PROTOCOLS[lane], {
      signal,
      maxOutboundStreams: LIMITS.rpcStreamsPerPeer,
      runOnLimitedConnection: true,
    })
    return { stream, connection }
  } catch (cause) {
    const why = messageOf(signal.aborted ? signal.reason : cause)
    throw new ShoalError('peer_unreachable', `cannot reach peer ${peer}: ${why}`, { cause })
  }
}

function offenceOf(
  offences: Pick<Offences, 'note'>,
  peer: string,
): NonNullable<FrameChannelOptions['onDrop']> {
  return (reason, message) => offences.note(peer, reason, message)
}

interface Served {
  accept(stream: Stream, peer: string, lane: Lane): void
  end(fault: ShoalError): void
}

/** Streams that others opened. A peer that opens too many loses its oldest: most likely a connection that died silently. */
function createServed(
  options: RpcServiceOptions,
  handlers: ReadonlyMap<string, RpcHandler>,
): Served {
  const { clock, logger, metrics, offences, stallMs = DEADLINES.rpcStallMs } = options
  const channels = new Map<string, FrameChannel[]>()
  return {
    accept(stream, peer, lane) {
      const shared = { clock, logger, metrics, stallMs, onDrop: offenceOf(offences, peer) }
      const channel = serveRpc({ ...shared, stream, peer, lane, handlers })
      const ofPeer = channels.get(peer) ?? []
      channels.set(peer, ofPeer)
      ofPeer.push(channel)
      channel.ended.addEventListener('abort', () => {
        ofPeer.splice(ofPeer.indexOf(channel), 1)
        if (ofPeer.length === 0) channels.delete(peer)
      })
      if (ofPeer.length > LIMITS.rpcStreamsPerPeer) {
        ofPeer[0]?.drop('too_many', 'the peer opened another stream instead')
      }
    },
    end(fault) {
      for (const ofPeer of channels.values())
        ofPeer.slice().forEach((channel) => channel.end(fault))
    },
  }
}
