/**
 * Named services between the programs that people run beside their nodes.
 *
 * Contract. `service/call` takes a service's name and a request of at most `LIMITS.blobBytes` and answers with the
 * first piece of the reply, and whether there is more. More is pulled by the caller, piece by piece, with
 * `service/next`: the reply is produced as fast as it is read and no faster. One that nobody has read on for
 * `DEADLINES.serviceIdleMs` is dropped, and its producer told to end. Calls are not repeated: a service may not be
 * idempotent.
 */
import { z } from 'zod'
import { raceSignal, withDeadline, type Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { PeerRpc, RpcContext, RpcHandler } from './network.ts'

const METHODS = ['service/call', 'service/next'] as const
type Method = (typeof METHODS)[number]

export const SERVICE_NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/

/** Pieces of the reply, made as they are read; bytes alone are a reply of one piece. */
export type ServiceReply = Uint8Array | AsyncIterable<Uint8Array>
/** Answers requests to one service. */
export type ServiceHandler = (request: Uint8Array, context: RpcContext) => Promise<ServiceReply>

/** Calls between the programs that run beside the nodes: named services, unary or streamed replies. */
export interface Services {
  /** One handler per name; returns the function that removes it. Throws `conflict`, `limit_exceeded`. */
  serve(service: string, handler: ServiceHandler): () => void
  /**
   * Resolves with the reply's first piece at hand. Rejects with `refused` when the peer offers no such service, else
   * with the service's own fault. A node's own services are called alike, within it.
   */
  call(
    peer: string,
    service: string,
    request: Uint8Array,
    options: { signal: AbortSignal },
  ): Promise<AsyncIterable<Uint8Array>>
  close(): void
}

const bytesSchema = z.instanceof(Uint8Array).refine(({ length }) => length <= LIMITS.blobBytes)
const callSchema = z.strictObject({
  service: z.string().regex(SERVICE_NAME),
  request: bytesSchema,
})
const streamId = z.number().int().min(0)
const nextSchema = z.strictObject({ stream: streamId, index: z.number().int().min(1) })
const pieceSchema = z.strictObject({ piece: bytesSchema, stream: streamId.nullable() })
interface Piece {
  piece: Uint8Array
  /** Where more of the reply is to be had; null at its end. */
  stream: number | null
}

interface ServicesOptions {
  /** Of this node. */
  peerId: string
  rpc: PeerRpc
  clock: Clock
}

export function createServices({ peerId, rpc, clock }: ServicesOptions): Services {
  const handlers = new Map<string, ServiceHandler>()
  const replies = createReplies(clock)
  const methods: Record<Method, RpcHandler> = {
    'service/call': async (message, context) => {
      const { service, request } = parseMessage(callSchema, message, 'call of a service')
      const handler = handlers.get(service)
      if (handler === undefined) {
        throw new ShoalError('refused', `this peer offers no service "${service}"`)
      }
      return encodeCbor(await replies.begin(context.peer, await handler(request, context)))
    },
    'service/next': async (message, { peer }) => {
      const { stream, index } = parseMessage(nextSchema, message, 'question for a piece')
      return encodeCbor(await replies.next(peer, stream, index))
    },
  }
  const removers = METHODS.map((method) => rpc.handle(method, methods[method]))
  // A node does not dial itself: its own services are asked here, with the limits of a peer.
  const askHere: Ask = (method, message, signal) =>
    withDeadline(clock, DEADLINES.rpcHandlerMs, `answering "${method}"`, signal, (limited) =>
      raceSignal(methods[method](message, { peer: peerId, signal: limited }), limited),
    )
  return {
    serve(service, handler) {
      if (!SERVICE_NAME.test(service)) {
        throw new ShoalError('body_invalid', `"${service}" is no name of a service (a-z 0-9 . _ -)`)
      }
      if (handlers.has(service)) {
        throw new ShoalError('conflict', `service "${service}" is served here already`)
      }
      if (handlers.size >= LIMITS.services) {
        throw new ShoalError('limit_exceeded', `${handlers.size} services are served here already`)
      }
      handlers.set(service, handler)
      return () => {
        if (handlers.get(service) === handler) handlers.delete(service)
      }
    },
    call: (peer, service, request, { signal }) =>
      callService(peer === peerId ? askHere : askPeer(rpc, peer), service, request, signal),
    close() {
      for (const remove of removers) remove()
      replies.close()
    },
  }
}

type Ask = (method: Method, message: Uint8Array, signal: AbortSignal) => Promise<Uint8Array>

function askPeer(rpc: PeerRpc, peer: string): Ask {
  // A call may take its time, and the bulk lane has few places.
  const lanes = { 'service/call': 'control', 'service/next': 'bulk' } as const
  return (method, message, signal) => {
    const options = { signal, deadlineMs: DEADLINES.rpcHandlerMs, lane: lanes[method] }
    return rpc.call(peer, method, message, options)
  }
}

async function callService(
  ask: Ask,
  service: string,
  request: Uint8Array,
  signal: AbortSignal,
): Promise<AsyncIterable<Uint8Array>> {
  if (request.length > LIMITS.blobBytes) {
    throw new ShoalError(
      'body_too_large',
      `a request has ${LIMITS.blobBytes} bytes at most: put more in a blob and send its CID`,
    )
  }
  const pieceOf = async (method: Method, question: unknown): Promise<Piece> =>
    parseMessage(pieceSchema, await ask(method, encodeCbor(question), signal), 'reply of a service')
  const first = await pieceOf('service/call', { service, request })
  return follow(first, (stream, index) => pieceOf('service/next', { stream, index }))
}

/** Replies that their callers have not read to the end. */
interface Replies {
  begin(peer: string, reply: ServiceReply): Promise<Piece>
  next(peer: string, stream: number, index: number): Promise<Piece>
  close(): void
}

interface Stream {
  peer: string
  /** Of the next piece. */
  index: number
  pieces: AsyncIterator<Uint8Array>
  usedMs: number
  isBusy: boolean
  /** Aborted at its end: its watcher must not outlive it, or a peer that reads many short ones leaves a crowd. */
  over: AbortController
}

function createReplies(clock: Clock): Replies {
  const streams = new Map<number, Stream>()
  let started = 0

  function remove(id: number, { over }: Stream): void {
    streams.delete(id)
    over.abort(OVER)
  }

  function drop(id: number, stream: Stream): void {
    remove(id, stream)
    // What a producer does when it is told to end is nobody's business any more.
    stream.pieces.return?.().catch(() => {})
  }

  /** Drops a stream that is not read on: its caller may have gone without a word. */
  async function watch(id: number, stream: Stream): Promise<void> {
    for (;;) {
      const idleMs = stream.isBusy ? 0 : clock.now() - stream.usedMs
      if (idleMs >= DEADLINES.serviceIdleMs) return drop(id, stream)
      await clock.sleep(DEADLINES.serviceIdleMs - idleMs, stream.over.signal)
    }
  }

  /** The next piece; the stream is forgotten at its end or its fault. */
  async function advance(id: number, stream: Stream): Promise<Piece> {
    stream.isBusy = true
    let isOver = true
    try {
      const { done, value } = await stream.pieces.next()
      isOver = done === true
      return done === true ? END : { piece: value, stream: id }
    } finally {
      if (isOver) remove(id, stream)
      stream.index++
      stream.isBusy = false
      stream.usedMs = clock.now()
    }
  }

  return {
    async begin(peer, reply) {
      if (reply instanceof Uint8Array && reply.length <= LIMITS.blobBytes) {
        return { piece: reply, stream: null }
      }
      if (streams.size >= LIMITS.serviceStreams) {
        throw new ShoalError('limit_exceeded', `${streams.size} replies are being read already`)
      }
      const over = new AbortController()
      const stream = { peer, index: 0, pieces: inPieces(reply), usedMs: 0, isBusy: true, over }
      const id = started++
      streams.set(id, stream)
      const first = await advance(id, stream)
      // Ends with the stream.
      if (first.stream !== null) watch(id, stream).catch(() => {})
      return first
    },
    async next(peer, id, index) {
      const stream = streams.get(id)
      if (stream?.peer !== peer || stream.index !== index || stream.isBusy) {
        throw new ShoalError('not_found', 'this reply is no longer kept: call again')
      }
      return advance(id, stream)
    },
    close() {
      for (const [id, stream] of streams) drop(id, stream)
    },
  }
}

/** One for all: an error made for each stream would cost more than the rest of its end. */
const OVER = new ShoalError('aborted', 'the reply is over')
const END: Piece = { piece: new Uint8Array(), stream: null }

async function* follow(
  first: Piece,
  next: (stream: number, index: number) => Promise<Piece>,
): AsyncGenerator<Uint8Array, void> {
  let current = first
  for (let index = 1; ; index++) {
    if (current.piece.length > 0) yield current.piece
    if (current.stream === null) return
    current = await next(current.stream, index)
  }
}

/** Empty pieces are left out, large ones cut. */
async function* inPieces(reply: ServiceReply): AsyncGenerator<Uint8Array, void> {
  const pieces = reply instanceof Uint8Array ? [reply] : reply
  for await (const piece of pieces) {
    for (let from = 0; from < piece.length; from += LIMITS.blobBytes) {
      yield piece.subarray(from, from + LIMITS.blobBytes)
    }
  }
}
