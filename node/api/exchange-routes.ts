/** Routes of what programs beside the nodes exchange: blobs by CID, and calls of services. */
import { z } from 'zod'
import { DEADLINES, LIMITS } from '../../src/limits.ts'
import { SERVICE_NAME } from '../../src/net/services.ts'
import { none, numeric, peerId, type Route } from './route.ts'

const FOR_SCRIPTS = { none: 'scripts exchange bytes, people do not' }
const oneBlob = z.strictObject({ cid: z.string().min(1).max(128) })
const blobSchema = z.object({
  cid: z.string(),
  bytes: z.number(),
  /** Whether this node announces it in the DHT. */
  provided: z.boolean(),
})

export const BLOB_ROUTES = {
  blobs: {
    method: 'GET',
    path: '/v1/blobs',
    summary: 'Blobs that were put or provided here.',
    input: none,
    output: z.object({ blobs: z.array(blobSchema) }),
    command: FOR_SCRIPTS,
  },
  putBlob: {
    method: 'PUT',
    path: '/v1/blobs',
    summary: 'Stores bytes, keeps them, and answers with their CID.',
    input: none,
    body: { what: 'any bytes', bytesMax: LIMITS.sharedBlobBytes },
    output: blobSchema,
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  getBlob: {
    method: 'GET',
    path: '/v1/blobs/{cid}',
    summary: 'The bytes of a CID, from here or from the peers that have it.',
    input: oneBlob,
    output: none,
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  forgetBlob: {
    method: 'DELETE',
    path: '/v1/blobs/{cid}',
    summary: 'Keeps a blob no longer.',
    input: oneBlob,
    output: z.object({ forgotten: z.string() }),
    command: FOR_SCRIPTS,
  },
  provideBlob: {
    method: 'POST',
    path: '/v1/blobs/{cid}/provide',
    summary:
      'Fetches a blob where it is not here, keeps it, and announces it: in the background, so that others may find it some seconds after the answer.',
    input: oneBlob,
    output: blobSchema,
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  blobProviders: {
    method: 'GET',
    path: '/v1/blobs/{cid}/providers',
    summary: 'Other peers whose announcement of a blob has arrived in the DHT.',
    input: oneBlob,
    output: z.object({ peers: z.array(z.string()) }),
    command: FOR_SCRIPTS,
  },
} as const satisfies Record<string, Route>

const service = z.string().regex(SERVICE_NAME)
const requestId = z.string().min(1).max(64)

export const SERVICE_ROUTES = {
  callService: {
    method: 'POST',
    path: '/v1/peers/{peer}/call/{service}',
    summary:
      'Calls a service that a program serves beside another peer, or beside this one. The reply is streamed.',
    input: z.strictObject({ peer: peerId, service }),
    body: { what: 'the request', bytesMax: LIMITS.blobBytes },
    output: none,
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  serviceRequest: {
    method: 'GET',
    path: '/v1/services/{service}/requests',
    summary:
      'Serves a service: waits for the next request to it. Status 204 when none came in time. Who does not ask again within a minute serves it no longer.',
    input: z.strictObject({
      service,
      waitMs: numeric(
        z
          .number()
          .int()
          .min(0)
          .max(DEADLINES.apiMs / 2),
      ).default(DEADLINES.apiMs / 2),
    }),
    output: z.object({ requestId, peer: z.string() }),
    answer: 'bytes',
    command: FOR_SCRIPTS,
  },
  serviceReply: {
    method: 'POST',
    path: '/v1/services/{service}/requests/{id}/reply',
    summary:
      'Answers a request, with a stream if need be: its caller sees what is sent as it comes.',
    input: z.strictObject({ service, id: requestId }),
    body: { what: 'the reply', bytesMax: LIMITS.sharedBlobBytes },
    output: z.object({ delivered: z.literal(true) }),
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  serviceRefusal: {
    method: 'POST',
    path: '/v1/services/{service}/requests/{id}/refuse',
    summary: 'Refuses a request: its caller sees the fault `refused` with the message.',
    input: z.strictObject({ service, id: requestId, message: z.string().max(512) }),
    output: z.object({ refused: z.literal(true) }),
    command: FOR_SCRIPTS,
  },
} as const satisfies Record<string, Route>
