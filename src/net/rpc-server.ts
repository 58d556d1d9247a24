/** The answering end of an RPC stream: a bounded number of requests at once, a reply or a fault for each. */
import type { Clock } from '../clock.ts'
import { abortReason } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { createExpiry } from './expiry.ts'
import type { Expiring, Expiry } from './expiry.ts'
import { createFrameChannel } from './frame-channel.ts'
import type { FrameChannel, FrameChannelOptions } from './frame-channel.ts'
import type { OutgoingFrame } from './frame-writer.ts'
import type { Frame } from './frame.ts'
import type { Lane, RpcContext, RpcHandler } from './network.ts'
import { encodeFault } from './rpc-fault.ts'

export interface RpcServerOptions extends Omit<FrameChannelOptions, 'onFrame'> {
  peer: string
  lane: Lane
  handlers: ReadonlyMap<string, RpcHandler>
  clock: Clock
  logger: Logger
  metrics: Metrics
}

/** Requests worked on at once. */
const PLACES: Record<Lane, number> = {
  control: LIMITS.rpcHandlersPerStream,
  bulk: LIMITS.chunksInFlight,
}

/** What a handler gets. Its signal is made when it is asked for: most handlers are done before anything could fire. */
class RequestInWork implements RpcContext, Expiring {
  readonly peer: string
  readonly frame: Frame
  readonly expiresAtMs: number
  #controller: AbortController | undefined
  #fault: ShoalError | undefined

  constructor(peer: string, frame: Frame, expiresAtMs: number) {
    this.peer = peer
    this.frame = frame
    this.expiresAtMs = expiresAtMs
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#fault !== undefined) this.#controller.abort(this.#fault)
    return this.#controller.signal
  }

  /** Once aborted it is done: what its handler still returns is nobody's. */
  get isAborted(): boolean {
    return this.#fault !== undefined
  }

  abort(fault: ShoalError): void {
    this.#fault ??= fault
    this.#controller?.abort(fault)
  }
}

export function serveRpc(options: RpcServerOptions): FrameChannel {
  return new StreamServer(options).channel
}

class StreamServer {
  readonly channel: FrameChannel
  readonly #options: RpcServerOptions
  readonly #waiting = createFrameQueue()
  readonly #inWork: Expiry<RequestInWork>
  #places: number
  /** Those that wait and those in work, and their bytes. */
  #requests = 0
  #requestBytes = 0
  /** Of replies that have not left. */
  #replyBytes = 0

  constructor(options: RpcServerOptions) {
    this.#options = options
    this.#places = PLACES[options.lane]
    this.#inWork = createExpiry(options.clock, (request: RequestInWork) => {
      const { method } = request.frame
      const message = `answering "${method}" took longer than ${DEADLINES.rpcHandlerMs} ms`
      const fault = new ShoalError('timeout', message)
      this.#fail(request, fault)
      request.abort(fault)
    })
    this.channel = createFrameChannel({ ...options, onFrame: (frame) => this.#receive(frame) })
    this.channel.ended.addEventListener('abort', () => {
      const fault = asFault(abortReason(this.channel.ended))
      this.#waiting.clear()
      for (const request of this.#inWork) request.abort(fault)
      this.#inWork.stop()
    })
  }

  #receive(frame: Frame): void {
    if (frame.kind !== 'request') {
      const message = `the peer sent a ${frame.kind} where requests are expected`
      return this.channel.drop('unexpected', message)
    }
    const bytes = this.#requestBytes + frame.payload.length
    if (this.#requests >= LIMITS.rpcRequestsInFlight || bytes > LIMITS.rpcBytesInFlight) {
      this.#options.metrics.add('rpc_requests_total', 1, 'limit_exceeded')
      const message = 'too many requests of this peer are unanswered'
      const payload = encodeFault(new ShoalError('limit_exceeded', message))
      return this.channel.send({ kind: 'fault', id: frame.id, method: '', payload })
    }
    this.#requests++
    this.#requestBytes = bytes
    this.#waiting.push(frame)
    this.#startWaiting()
  }

  #startWaiting(): void {
    const { peer, clock } = this.#options
    // Replies that do not leave hold up the next: a peer that does not read them must not fill the memory.
    while (this.#places > 0 && this.#replyBytes < LIMITS.rpcBytesInFlight) {
      const frame = this.#waiting.shift()
      if (frame === undefined) return
      this.#places--
      this.#start(new RequestInWork(peer, frame, clock.now() + DEADLINES.rpcHandlerMs))
    }
  }

  #start(request: RequestInWork): void {
    const { method, payload } = request.frame
    this.#inWork.add(request)
    try {
      const handler = this.#options.handlers.get(method)
      if (handler === undefined) {
        throw new ShoalError('refused', `this peer does not offer "${method}"`)
      }
      handler(payload, request).then(
        (reply) => this.#succeed(request, reply),
        (thrown: unknown) => this.#fail(request, thrown),
      )
    } catch (thrown) {
      this.#fail(request, thrown)
    }
  }

  #succeed(request: RequestInWork, payload: Uint8Array): void {
    if (payload.length > LIMITS.rpcMessageBytes) {
      const why = `the reply to "${request.frame.method}" has ${payload.length} bytes`
      return this.#fail(request, new Error(why))
    }
    this.#answer(request, 'reply', payload, 'ok')
  }

  #fail(request: RequestInWork, thrown: unknown): void {
    if (request.isAborted) return
    const { code, message } = asFault(thrown)
    if (!(thrown instanceof ShoalError)) {
      const { method } = request.frame
      this.#options.logger.error('rpc_handler_failed', { method, message })
    }
    this.#answer(request, 'fault', encodeFault(thrown), code)
  }

  #answer(
    request: RequestInWork,
    kind: 'reply' | 'fault',
    payload: Uint8Array,
    outcome: string,
  ): void {
    if (request.isAborted) return
    const { id, payload: asked } = request.frame
    this.#inWork.delete(request)
    this.#options.metrics.add('rpc_requests_total', 1, outcome)
    this.#requests--
    this.#requestBytes -= asked.length
    this.#replyBytes += payload.length
    this.channel.send({ kind, id, method: '', payload, onFlushed: this.#onFlushed })
    // On the bulk lane a place is kept until the reply has left: so many blobs in memory per peer.
    if (this.#options.lane === 'bulk') return
    this.#places++
    this.#startWaiting()
  }

  readonly #onFlushed = ({ payload }: OutgoingFrame): void => {
    this.#replyBytes -= payload.length
    if (this.#options.lane === 'bulk') this.#places++
    this.#startWaiting()
  }
}

interface FrameQueue {
  push(frame: Frame): void
  shift(): Frame | undefined
  clear(): void
}

/** An array from whose front nothing is taken away one by one. */
function createFrameQueue(): FrameQueue {
  let frames: Frame[] = []
  let taken = 0
  return {
    push: (frame) => void frames.push(frame),
    shift() {
      const frame = frames[taken]
      if (frame === undefined) return undefined
      taken++
      if (taken === LIMITS.rpcRequestsInFlight || taken === frames.length) {
        frames = frames.slice(taken)
        taken = 0
      }
      return frame
    },
    clear() {
      frames = []
      taken = 0
    },
  }
}
