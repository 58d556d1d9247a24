/**
 * Peer RPC over libp2p: `/shoal/rpc/1/control` and `/shoal/rpc/1/bulk`.
 *
 * The caller opens one stream per peer and lane and keeps it; requests carry ids, so that any number are under way at
 * once (one stream per request costs a round trip and is 8 to 40 times slower). The called side keeps its own streams
 * for its own requests. A stream that drops fails its calls with `peer_unreachable`; the next call opens another.
 */
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import { abortReason, raceSignal, withDeadline } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { FrameChannel } from './frame-channel.ts'
import { isMethodName } from './frame.ts'
import type { Lane, PeerRpc, RpcHandler } from './network.ts'
import { createRpcCaller } from './rpc-caller.ts'
import type { RpcCaller } from './rpc-caller.ts'
import { serveRpc } from './rpc-server.ts'

export const RPC_PROTOCOLS: Record<Lane, string> = {
  control: '/shoal/rpc/1/control',
  bulk: '/shoal/rpc/1/bulk',
}

const LANES = ['control', 'bulk'] as const

export interface RpcServiceOptions {
  libp2p: Pick<Libp2p, 'handle' | 'unhandle'>
  /** A live connection to the peer, dialled if need be. */
  connectionTo: (peer: string, signal: AbortSignal) => Promise<Connection>
  clock: Clock
  logger: Logger
  metrics: Metrics
  stallMs?: number | undefined
}

export interface RpcService extends PeerRpc {
  stop(): Promise<void>
}

export async function createRpcService(options: RpcServiceOptions): Promise<RpcService> {
  const { libp2p } = options
  const handlers = new Map<string, RpcHandler>()
  const stopping = new AbortController()
  const callers = createCallers(options, stopping.signal)
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
    async call(peer, method, request, callOptions = {}) {
      if (stopping.signal.aborted) throw abortReason(stopping.signal)
      const { lane = 'control', signal } = callOptions
      const { deadlineMs = lane === 'bulk' ? DEADLINES.chunkMs : DEADLINES.rpcMs } = callOptions
      const cause = `"${method}" of peer ${peer}`
      return withDeadline(options.clock, deadlineMs, cause, signal, (limited) =>
        callWithRetry(callers, peer, lane, method, request, limited),
      )
    },
    async stop() {
      const fault = new ShoalError('aborted', 'the node is stopping')
      stopping.abort(fault)
      callers.end(fault)
      served.end(fault)
      await libp2p.unhandle(LANES.map((lane) => RPC_PROTOCOLS[lane]))
    },
  }
}

/** Once more on a fresh stream, but only a request that cannot have reached the other side: calls need not be idempotent. */
async function callWithRetry(
  callers: Callers,
  peer: string,
  lane: Lane,
  method: string,
  request: Uint8Array,
  signal: AbortSignal,
): Promise<Uint8Array> {
  for (let attempt = 1; ; attempt++) {
    const caller = await raceSignal(callers.get(peer, lane), signal)
    let sent = false
    try {
      return await caller.request(method, request, signal, () => {
        sent = true
      })
    } catch (thrown) {
      if (attempt === 2 || sent || signal.aborted || !caller.ended.aborted) throw thrown
    }
  }
}

interface Callers {
  get(peer: string, lane: Lane): Promise<RpcCaller>
  end(fault: ShoalError): void
}

/** One caller per peer and lane; calls that come while it opens wait for the same one. */
function createCallers(options: RpcServiceOptions, stopping: AbortSignal): Callers {
  const { clock, metrics, stallMs = DEADLINES.rpcStallMs } = options
  const callers = new Map<string, Promise<RpcCaller>>()

  async function open(peer: string, lane: Lane): Promise<RpcCaller> {
    const signal = clock.deadline(DEADLINES.dialMs, 'connecting', stopping)
    try {
      const connection = await options.connectionTo(peer, signal)
      const stream = await connection.newStream(RPC_PROTOCOLS[lane], {
        signal,
        maxOutboundStreams: LIMITS.rpcStreamsPerPeer,
        runOnLimitedConnection: true,
      })
      return createRpcCaller({ stream, clock, metrics, stallMs })
    } catch (cause) {
      const why = messageOf(signal.aborted ? signal.reason : cause)
      throw new ShoalError('peer_unreachable', `cannot reach peer ${peer}: ${why}`, { cause })
    }
  }

  return {
    get(peer, lane) {
      const key = `${lane} ${peer}`
      const known = callers.get(key)
      if (known !== undefined) return known
      const opening = open(peer, lane)
      callers.set(key, opening)
      forgetWhenEnded(opening, () => {
        if (callers.get(key) === opening) callers.delete(key)
      })
      return opening
    },
    end(fault) {
      for (const opening of callers.values())
        opening.then(
          ({ end }) => end(fault),
          () => {},
        )
    },
  }
}

function forgetWhenEnded(opening: Promise<RpcCaller>, forget: () => void): void {
  opening.then(({ ended }) => {
    if (ended.aborted) return forget()
    return ended.addEventListener('abort', forget)
  }, forget)
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
  const { clock, logger, metrics, stallMs = DEADLINES.rpcStallMs } = options
  const channels = new Map<string, FrameChannel[]>()
  return {
    accept(stream, peer, lane) {
      const channel = serveRpc({ stream, peer, lane, handlers, clock, logger, metrics, stallMs })
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
