/** What the routes of blobs and services do. */
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import type { ShoalNode } from '../../src/node.ts'
import { parseCid } from '../../src/store/content.ts'
import { bytesHandler, handler } from './handler.ts'
import type { HandlerOptions } from './handlers.ts'
import { flowing, released } from './octets.ts'
import type { OutsideServices } from './outside-services.ts'
import { ROUTES } from './routes.ts'

export function blobHandlers({ node: { blobs }, clock }: HandlerOptions) {
  return {
    blobs: handler(ROUTES.blobs, () => ({ blobs: blobs.list() })),
    putBlob: handler(ROUTES.putBlob, (_input, { body }) =>
      blobs.put(released(flowing(body, clock))),
    ),
    getBlob: bytesHandler(ROUTES.getBlob, async ({ cid }, { signal }) => ({
      output: {},
      ...(await blobs.open(givenCid(cid), signal)),
    })),
    forgetBlob: handler(ROUTES.forgetBlob, async ({ cid }) => {
      await blobs.forget(givenCid(cid))
      return { forgotten: cid }
    }),
    provideBlob: handler(ROUTES.provideBlob, ({ cid }, { signal }) =>
      blobs.provide(givenCid(cid), signal),
    ),
    blobProviders: handler(ROUTES.blobProviders, async ({ cid }, { signal }) => ({
      peers: await blobs.providers(givenCid(cid), signal),
    })),
  }
}

/** What a caller writes is its own fault, not that of a peer. */
function givenCid(text: string): ReturnType<typeof parseCid> {
  try {
    return parseCid(text)
  } catch (cause) {
    throw new ShoalError('body_invalid', `${JSON.stringify(text)} is no CID of a blob`, { cause })
  }
}

export function serviceHandlers(node: ShoalNode, services: OutsideServices) {
  return {
    callService: bytesHandler(ROUTES.callService, async (input, { signal, body }) => ({
      output: {},
      content: await node.services.call(input.peer, input.service, await whole(body), { signal }),
    })),
    serviceRequest: bytesHandler(ROUTES.serviceRequest, async ({ service, waitMs }, { signal }) => {
      const next = await services.next(service, waitMs, signal)
      if (next === undefined) return { output: { requestId: '', peer: '' }, content: undefined }
      const { id, peer, request } = next
      return { output: { requestId: id, peer }, content: [request], bytes: request.length }
    }),
    serviceReply: handler(ROUTES.serviceReply, async ({ service, id }, context) => {
      const { body, bodyBytes = Infinity, signal } = context
      if (bodyBytes <= LIMITS.blobBytes) {
        services.reply(service, id, await whole(body))
      } else {
        const { reply, delivered } = handOver(body, signal)
        services.reply(service, id, reply)
        await delivered
      }
      return { delivered: true as const }
    }),
    serviceRefusal: handler(ROUTES.serviceRefusal, ({ service, id, message }) => {
      services.refuse(service, id, message)
      return { refused: true as const }
    }),
  }
}

/** Bounded by the route. */
async function whole(body: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  for await (const piece of body) pieces.push(piece)
  return new Uint8Array(Buffer.concat(pieces))
}

/** A reply that is read from the body as its caller reads on. `delivered` rejects when its caller reads no further. */
function handOver(
  body: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): { reply: AsyncIterable<Uint8Array>; delivered: Promise<void> } {
  const end = Promise.withResolvers<void>()
  end.promise.catch(() => {})
  async function* pieces(): AsyncGenerator<Uint8Array, void> {
    let isWhole = false
    try {
      for await (const piece of body) yield piece
      isWhole = true
    } finally {
      if (isWhole) end.resolve()
      else end.reject(signal.aborted ? signal.reason : callerGone())
    }
  }
  return { reply: pieces(), delivered: end.promise }
}

function callerGone(): ShoalError {
  return new ShoalError('aborted', 'the caller of the service reads no further')
}
