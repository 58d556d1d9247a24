/** The answering end of an RPC stream: a bounded number of requests at once, a reply or a fault for each. */
import type { Clock } from '../clock.ts'
import { raceSignal, withDeadline } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { createFrameChannel } from './frame-channel.ts'
import type { FrameChannel, FrameChannelOptions } from './frame-channel.ts'
import type { Frame } from './frame.ts'
import type { Lane, RpcHandler } from './network.ts'
import { encodeFault } from './rpc-caller.ts'

export interface RpcServerOptions extends Omit<FrameChannelOptions, 'onFrame'> {
  peer: string
  lane: Lane
  handlers: ReadonlyMap<string, RpcHandler>
  clock: Clock
  logger: Logger
  metrics: Metrics
}

/** Requests worked on at once. On the bulk lane a place is kept until the reply has left: 8 blobs in memory per peer. */
const PLACES: Record<Lane, number> = {
  control: LIMITS.rpcRequestsInFlight,
  bulk: LIMITS.chunksInFlight,
}

export function serveRpc(options: RpcServerOptions): FrameChannel {
  const { metrics, lane } = options
  const waiting: Frame[] = []
  let working = 0
  let bytesHeld = 0

  const channel = createFrameChannel({ ...options, onFrame: receive })
  channel.ended.addEventListener('abort', () => {
    waiting.length = 0
  })

  function receive(frame: Frame, from: FrameChannel): void {
    if (frame.kind !== 'request') {
      from.drop('unexpected', `the peer sent a ${frame.kind} where requests are expected`)
      return
    }
    const requests = working + waiting.length
    const bytes = bytesHeld + frame.payload.length
    if (requests >= LIMITS.rpcRequestsInFlight || bytes > LIMITS.rpcBytesInFlight) {
      metrics.add('rpc_requests_total', 1, 'limit_exceeded')
      const fault = new ShoalError(
        'limit_exceeded',
        'too many requests of this peer are unanswered',
      )
      from.send({ kind: 'fault', id: frame.id, method: '', payload: encodeFault(fault) })
      return
    }
    bytesHeld = bytes
    waiting.push(frame)
    startNext()
  }

  function startNext(): void {
    while (working < PLACES[lane]) {
      const frame = waiting.shift()
      if (frame === undefined) return
      working++
      void answer(frame)
    }
  }

  async function answer(request: Frame): Promise<void> {
    const reply = await work(request, options, channel.ended)
    bytesHeld += reply.payload.length - request.payload.length
    channel.send(reply, undefined, () => {
      bytesHeld -= reply.payload.length
      working--
      startNext()
    })
  }

  return channel
}

/** Never rejects: whatever happens becomes a reply or a fault. */
async function work(request: Frame, options: RpcServerOptions, ended: AbortSignal): Promise<Frame> {
  const { peer, handlers, clock, logger, metrics } = options
  const { id, method } = request
  try {
    const handler = handlers.get(method)
    if (handler === undefined) {
      throw new ShoalError('refused', `this peer does not offer "${method}"`)
    }
    const payload = await withDeadline(
      clock,
      DEADLINES.rpcHandlerMs,
      `answering "${method}"`,
      ended,
      (signal) => raceSignal(handler(request.payload, { peer, signal }), signal),
    )
    if (payload.length > LIMITS.rpcMessageBytes) {
      throw new Error(`the reply to "${method}" has ${payload.length} bytes`)
    }
    metrics.add('rpc_requests_total', 1, 'ok')
    return { kind: 'reply', id, method: '', payload }
  } catch (thrown) {
    const { code, message } = asFault(thrown)
    metrics.add('rpc_requests_total', 1, code)
    if (!(thrown instanceof ShoalError)) logger.error('rpc_handler_failed', { method, message })
    return { kind: 'fault', id, method: '', payload: encodeFault(thrown) }
  }
}
