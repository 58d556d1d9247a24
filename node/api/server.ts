/** The local API over HTTP on loopback, mounted from the route table. */
import { createServer } from 'node:http'
import type { Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { getRequestListener } from '@hono/node-server'
import type { HttpBindings } from '@hono/node-server'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import { Hono } from 'hono'
import type { Context, MiddlewareHandler } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { withDeadline, type Clock } from '../../src/clock.ts'
import { FAULTS, ShoalError, asFault, messageOf } from '../../src/errors.ts'
import { DEADLINES, LIMITS } from '../../src/limits.ts'
import type { Logger } from '../../src/log.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { ConnectionEnds } from './connection-owner.ts'
import { createEventHistory } from './event-history.ts'
import type { EventHistory } from './event-history.ts'
import { eventStream } from './event-stream.ts'
import { createHandlers } from './handlers.ts'
import type { Handler } from './handlers.ts'
import { bodyOf, sendOctets } from './octets.ts'
import { headerName, pathParameters, sourceOf, toHeaders } from './route.ts'
import type { Route } from './route.ts'
import { ROUTES } from './routes.ts'
import { JSON_TYPE, OCTETS_TYPE, PAGE_HEADERS, guard, mediaType } from './security.ts'

const HOSTNAME = '127.0.0.1'
/** Calls of people and scripts on one machine, beside the readers of events. */
const CALLERS_MAX = 256
/** A caller on loopback that sends its headers slower than this is broken. */
const HEADERS_TIMEOUT_MS = 10_000
const CLOSE_GRACE_MS = 1_000

export interface ApiServerOptions {
  node: ShoalNode
  token: string
  /** 0 takes any free port. */
  port: number
  dataDir: string
  clock: Clock
  logger: Logger
  shutdown: () => void
  /** Default `DEADLINES.eventHeartbeatMs`. */
  heartbeatMs?: number
}

export interface ApiServer {
  readonly url: string
  close(): Promise<void>
}

interface Environment {
  Bindings: HttpBindings
}
type ApiContext = Context<Environment>

interface Mount {
  app: Hono<Environment>
  options: ApiServerOptions
  /** Fires when the server closes. */
  closing: AbortSignal
}

/** Listens on loopback. Throws `port_in_use` naming the port. */
export async function createApiServer(options: ApiServerOptions): Promise<ApiServer> {
  const closing = new AbortController()
  const app = new Hono<Environment>()
  const server = createHttpServer(app)
  const address = { port: options.port }
  const url = () => `http://${HOSTNAME}:${address.port}`
  const history = createEventHistory()
  const api = createHandlers({ ...options, apiUrl: url })

  app.onError((error, context) => problem(error, context, options.logger))
  app.notFound((context) => {
    const what = `${context.req.method} ${context.req.path} is no route of this API`
    return problem(new ShoalError('not_found', what), context, options.logger)
  })
  app.use(guard({ token: options.token, port: () => address.port, isOpen: openPaths() }))
  const mount: Mount = { app, options, closing: closing.signal }
  for (const handler of Object.values(api.handlers)) mountCall(mount, handler)
  mountEvents(mount, history)

  address.port = await listen(server, options.port)
  const unsubscribe = options.node.onEvent((event) => history.append(event))
  return {
    url: url(),
    async close() {
      unsubscribe()
      api.close()
      closing.abort(new ShoalError('aborted', 'the daemon is stopping'))
      await closeServer(server, options.clock)
    },
  }
}

function createHttpServer(app: Hono<Environment>): Server {
  const listener = getRequestListener(app.fetch)
  const server = createServer(
    { headersTimeout: HEADERS_TIMEOUT_MS, requestTimeout: DEADLINES.apiLongMs },
    // The adaptor answers by itself when the app rejects, so this promise never does.
    (incoming, outgoing) => {
      for (const [name, value] of Object.entries(PAGE_HEADERS)) outgoing.setHeader(name, value)
      void listener(incoming, outgoing)
    },
  )
  server.maxConnections = LIMITS.eventReaders + CALLERS_MAX
  return server
}

/** Whether a path is one of a route that needs no token. */
function openPaths(): (path: string) => boolean {
  const routes: Route[] = Object.values(ROUTES)
  const patterns = routes
    .filter((route) => route.open === true)
    .map(
      ({ path }) => new RegExp(`^${path.replaceAll('.', '\\.').replaceAll(/\{\w+\}/g, '[^/]+')}$`),
    )
  return (path) => patterns.some((pattern) => pattern.test(path))
}

function mountCall({ app, options, closing }: Mount, handler: Handler): void {
  const { route } = handler
  const limit = bodyLimit({ maxSize: LIMITS.apiBodyBytes, onError: refuseBody })
  const isJson = sourceOf(route) === 'json'
  app.on(route.method, honoPath(route), isJson ? limit : pass, async (context) => {
    const { outgoing } = context.env
    const signal = AbortSignal.any([hangUp(outgoing), closing])
    try {
      return await answer(context, handler, options.clock, signal)
    } catch (thrown) {
      if (!outgoing.headersSent) throw thrown
      // Half an answer is out, and the connection is cut: nothing more can be told.
      options.logger.debug('api_answer_cut', { path: context.req.path, reason: messageOf(thrown) })
      return RESPONSE_ALREADY_SENT
    }
  })
}

const pass: MiddlewareHandler = (_context, next) => next()

async function answer(
  context: ApiContext,
  { route, call }: Handler,
  clock: Clock,
  signal: AbortSignal,
): Promise<Response> {
  const { incoming, outgoing } = context.env
  const raw = await rawInput(context, route)
  const length = incoming.headers['content-length']
  const bodyBytes = length === undefined ? undefined : Number(length)
  const ends = endsOf(incoming.socket)
  const { method, path, deadlineMs = DEADLINES.apiMs } = route
  // Of the answer's begin: sending a large one may take its time.
  const result = await withDeadline(clock, deadlineMs, `${method} ${path}`, signal, (limited) => {
    const body = bodyOf(incoming, route.body?.bytesMax ?? 0, limited)
    return call(raw, { signal: limited, body, bodyBytes, ends })
  })
  if (!('download' in result)) return Response.json(result.json)
  // Who is still sending a body that nobody needs does not read the answer before its end.
  if (route.body !== undefined) incoming.resume()
  const { contentType = route.contentType ?? OCTETS_TYPE } = result.download
  const type = { 'content-type': contentType }
  const headers = { ...toHeaders(result.download.output), ...type }
  await sendOctets(outgoing, result.download, headers, clock, signal)
  return RESPONSE_ALREADY_SENT
}

/** Of a socket that is closed already nothing is known. */
function endsOf({ localAddress, localPort, remoteAddress, remotePort }: Socket): ConnectionEnds {
  return {
    own: { host: localAddress ?? '', port: localPort ?? 0 },
    other: { host: remoteAddress ?? '', port: remotePort ?? 0 },
  }
}

/** Fires when the caller goes before it has its answer. */
function hangUp(outgoing: ServerResponse): AbortSignal {
  const gone = new AbortController()
  outgoing.once('close', () => {
    if (!outgoing.writableFinished) gone.abort(new ShoalError('aborted', 'the caller hung up'))
  })
  return gone.signal
}

function mountEvents({ app, options, closing }: Mount, history: EventHistory): void {
  let readers = 0
  app.on(ROUTES.events.method, ROUTES.events.path, (context) => {
    if (readers >= LIMITS.eventReaders) {
      throw new ShoalError('limit_exceeded', `${readers} readers of events are here already`)
    }
    readers++
    const body = eventStream({
      history,
      clock: options.clock,
      heartbeatMs: options.heartbeatMs ?? DEADLINES.eventHeartbeatMs,
      lastEventId: context.req.header('last-event-id'),
      signal: AbortSignal.any([context.req.raw.signal, closing]),
      onEnd: () => readers--,
    })
    return context.body(body, 200, {
      'content-type': 'text/event-stream',
      'cache-control': 'no-store',
    })
  })
}

/** What the caller gave, as one object; the path wins, so that a body cannot rename what the path names. */
async function rawInput(context: ApiContext, route: Route): Promise<Record<string, unknown>> {
  const { req } = context
  const type = mediaType(req.header('content-type'))
  if (sourceOf(route) === 'headers' && type !== OCTETS_TYPE) throw wrongType(OCTETS_TYPE)
  const named = pathParameters(route).map((name) => [name, req.param(name)])
  return { ...(await givenInput(context, route, type)), ...Object.fromEntries(named) }
}

async function givenInput(
  context: ApiContext,
  route: Route,
  type: string | undefined,
): Promise<object> {
  const source = sourceOf(route)
  if (source === 'query') return context.req.query()
  if (source === 'headers') {
    const fields = Object.keys(route.input.shape)
    return Object.fromEntries(fields.map((field) => [field, context.req.header(headerName(field))]))
  }
  if (type !== JSON_TYPE) throw wrongType(JSON_TYPE)
  return jsonBody(context)
}

function wrongType(type: string): ShoalError {
  return new ShoalError('body_invalid', `send the header Content-Type: ${type}`)
}

async function jsonBody(context: ApiContext): Promise<object> {
  const text = await context.req.text()
  let body: unknown
  try {
    body = text === '' ? {} : JSON.parse(text)
  } catch (cause) {
    throw new ShoalError('body_invalid', `the body is not JSON: ${messageOf(cause)}`, { cause })
  }
  if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body
  throw new ShoalError('body_invalid', 'the body must be a JSON object')
}

function refuseBody(): never {
  throw new ShoalError('body_too_large', `a body may have ${LIMITS.apiBodyBytes} bytes at most`)
}

/** RFC 9457. Faults of our own making are told; anything else is also logged with its stack. */
function problem(thrown: unknown, context: Context, logger: Logger): Response {
  const fault = asFault(thrown)
  const { status } = FAULTS[fault.code]
  if (fault.code === 'internal') {
    logger.error('api_call_failed', { path: context.req.path, error: fault.cause ?? fault })
  }
  const body = {
    type: 'about:blank',
    title: fault.code.replaceAll('_', ' '),
    status,
    detail: fault.message,
    code: fault.code,
    details: fault.details,
  }
  const headers: Record<string, string> = { 'content-type': 'application/problem+json' }
  // The rest of the body is not read, so nothing can follow it on this connection.
  if (fault.code === 'body_too_large') headers['connection'] = 'close'
  if (status === 401) headers['www-authenticate'] = 'Bearer'
  return new Response(JSON.stringify(body), { status, headers })
}

function honoPath(route: Route): string {
  return route.path.replaceAll(/\{(\w+)\}/g, ':$1')
}

async function listen(server: Server, port: number): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, HOSTNAME, () => {
      server.removeListener('error', reject)
      resolve()
    })
  }).catch((cause: unknown) => {
    const taken = cause instanceof Error && 'code' in cause && cause.code === 'EADDRINUSE'
    if (!taken) {
      throw new ShoalError('internal', `cannot listen on port ${port}: ${messageOf(cause)}`, {
        cause,
      })
    }
    throw new ShoalError(
      'port_in_use',
      `port ${port} for the local API is already in use: choose another with --api-port`,
      { cause },
    )
  })
  const bound = server.address()
  return typeof bound === 'object' && bound !== null ? bound.port : port
}

/** Lets answers that are being written finish, then cuts what is left. */
async function closeServer(server: Server, clock: Clock): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    server.close(() => resolve())
  })
  server.closeIdleConnections()
  const grace = clock.deadline(CLOSE_GRACE_MS, 'open API calls')
  grace.addEventListener('abort', () => server.closeAllConnections(), { once: true })
  await closed
}
