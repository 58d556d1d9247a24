/** Typed client of the local API: any route of the table, each call with a deadline, and the events. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { abortReason, systemClock, withDeadline } from '../../src/clock.ts'
import type { Clock } from '../../src/clock.ts'
import { ShoalError, isFaultCode, messageOf } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import type { RunEvent } from '../../src/run/view.ts'
import { readApiFile } from './api-file.ts'
import { readEvents } from './event-reader.ts'
import { flowing } from './octets.ts'
import { headerName, pathParameters, sourceOf, toHeaders } from './route.ts'
import type { BytesRoute, JsonRoute, Route } from './route.ts'
import { ROUTES } from './routes.ts'
import { JSON_TYPE, OCTETS_TYPE } from './security.ts'

/** How to make a call. */
export interface CallOptions {
  signal?: AbortSignal | undefined
  deadlineMs?: number | undefined
  /** Of a route that takes bytes. */
  body?: Uint8Array | AsyncIterable<Uint8Array> | undefined
}

/** An answer in bytes; read it to its end, or cancel it. */
export interface Downloaded<T> {
  output: T
  /** Undefined when there is none. */
  content: ReadableStream<Uint8Array> | undefined
}

/** A daemon's local API from TypeScript: any route of `ROUTES`. */
export interface ApiClient {
  readonly url: string
  /** Calls a route of `ROUTES`. Rejects with the daemon's fault, `daemon_unreachable` or `timeout`. */
  call<I extends z.ZodObject, O extends z.ZodType>(
    route: JsonRoute<I, O>,
    input: z.input<I>,
    options?: CallOptions,
  ): Promise<z.output<O>>
  /**
   * As `call`, of a route that answers with bytes. The deadline is that of the answer's begin; reading it on fails when
   * none of it comes for `DEADLINES.apiLongMs`.
   */
  download<I extends z.ZodObject, O extends z.ZodObject>(
    route: BytesRoute<I, O>,
    input: z.input<I>,
    options?: CallOptions,
  ): Promise<Downloaded<z.output<O> | undefined>>
  /**
   * Domain events from now on, over reconnections without loss as far as the daemon keeps them. Ends with the signal;
   * throws `daemon_unreachable` when the daemon is gone.
   */
  events(options: { signal: AbortSignal }): AsyncIterable<RunEvent>
}

/** Where the daemon is, and its token. */
export interface ApiClientOptions {
  url: string
  token: string
  clock?: Clock
}

/**
 * A client of the daemon that owns `dataDir`. Throws `daemon_unreachable` with the remedy when none is running,
 * without sending the token to whatever may listen on its old port.
 */
export function connectDaemon(dataDir: string): ApiClient {
  const file = readApiFile(dataDir)
  if (file === undefined || !isAlive(file.pid)) {
    throw new ShoalError(
      'daemon_unreachable',
      `no daemon is running on ${dataDir}: start one with \`shoal daemon\`, or name its folder with --data-dir`,
    )
  }
  return createApiClient({ url: file.url, token: readToken(dataDir) })
}

/** A client of the daemon at `url`. Nothing is sent before the first call. */
export function createApiClient({ url, token, clock = systemClock }: ApiClientOptions): ApiClient {
  const http: Http = { url, clock, authorization: `Bearer ${token}` }
  return {
    url,
    call: (route, input, options) => call(http, route, input, options),
    download: (route, input, options) => download(http, route, input, options),
    events: ({ signal }) =>
      readEvents({
        clock,
        signal,
        open: (lastEventId, attempt) => openEvents(http, lastEventId, attempt),
      }),
  }
}

interface Http {
  url: string
  authorization: string
  clock: Clock
}

async function call<I extends z.ZodObject, O extends z.ZodType>(
  http: Http,
  route: JsonRoute<I, O>,
  input: z.input<I>,
  options: CallOptions = {},
): Promise<z.output<O>> {
  const signal = http.clock.deadline(...limitOf(route, options), options.signal)
  const response = await send(http, requestOf(http, route, input, options.body, signal), signal)
  const body = await response.json().catch((cause: unknown) => {
    throw signal.aborted ? abortReason(signal) : unexpected(`not JSON: ${messageOf(cause)}`)
  })
  return checked(route.output, body)
}

async function download<I extends z.ZodObject, O extends z.ZodObject>(
  http: Http,
  route: BytesRoute<I, O>,
  input: z.input<I>,
  options: CallOptions = {},
): Promise<Downloaded<z.output<O> | undefined>> {
  const response = await withDeadline(
    http.clock,
    ...limitOf(route, options),
    options.signal,
    (signal) => send(http, requestOf(http, route, input, options.body, signal), signal),
  )
  if (response.status === 204) return { output: undefined, content: undefined }
  const fields = Object.keys(route.output.shape).flatMap((field) => {
    const value = response.headers.get(headerName(field))
    return value === null ? [] : [[field, value]]
  })
  const output = checked(route.output, Object.fromEntries(fields))
  if (response.body === null) return { output, content: new ReadableStream() }
  // An answer that is long, or made while it is read, takes as long as it takes.
  const pieces = flowing(response.body, http.clock, DEADLINES.apiLongMs)
  return { output, content: streamOf(pieces) }
}

function limitOf(route: Route, { deadlineMs }: CallOptions): [ms: number, cause: string] {
  return [deadlineMs ?? route.deadlineMs ?? DEADLINES.apiMs, `${route.method} ${route.path}`]
}

function checked<O extends z.ZodType>(schema: O, value: unknown): z.output<O> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  throw unexpected(z.prettifyError(parsed.error).replaceAll(/\s+/g, ' '))
}

function unexpected(why: string): ShoalError {
  const remedy = 'daemon and client may be of different versions: restart the daemon'
  return new ShoalError(
    'version_unsupported',
    `unexpected answer of the daemon (${remedy}; ${why})`,
  )
}

function requestOf(
  http: Http,
  route: Route,
  input: Record<string, unknown>,
  body: CallOptions['body'],
  signal: AbortSignal,
): Request {
  const named = pathParameters(route)
  const rest = Object.fromEntries(
    Object.entries(input).filter(([key, value]) => !named.includes(key) && value !== undefined),
  )
  const path = named.reduce(
    (text, name) => text.replace(`{${name}}`, encodeURIComponent(String(input[name]))),
    route.path,
  )
  const { method } = route
  const { authorization } = http
  const source = sourceOf(route)
  if (source === 'query') {
    const query = new URLSearchParams(Object.entries(rest).map(([k, v]) => [k, String(v)]))
    const suffix = query.size === 0 ? '' : `?${query.toString()}`
    return new Request(`${http.url}${path}${suffix}`, {
      method,
      headers: { authorization },
      signal,
    })
  }
  const headers =
    source === 'json'
      ? { authorization, 'content-type': JSON_TYPE }
      : { ...toHeaders(rest), authorization, 'content-type': OCTETS_TYPE }
  const content = source === 'json' ? { body: JSON.stringify(rest) } : bytesBody(body)
  return new Request(`${http.url}${path}`, { method, headers, signal, ...content })
}

function bytesBody(body: CallOptions['body']): RequestInit {
  if (body === undefined) return { body: new Uint8Array() }
  if (body instanceof Uint8Array) return { body: new Uint8Array(body) }
  // A body that is made while it is sent; fetch wants to be told.
  const init = { body: streamOf(body), duplex: 'half' }
  return init
}

function streamOf(content: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const pieces = content[Symbol.asyncIterator]()
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await pieces.next()
      if (done === true) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      await pieces.return?.()
    },
  })
}

/** The response of a call that succeeded; a problem becomes the fault that the daemon meant. */
async function send(http: Http, request: Request, signal: AbortSignal): Promise<Response> {
  const response = await fetch(request).catch((cause: unknown) => {
    if (signal.aborted) throw abortReason(signal)
    throw new ShoalError(
      'daemon_unreachable',
      `the daemon at ${http.url} does not answer: start it with \`shoal daemon\``,
      { cause },
    )
  })
  if (response.ok) return response
  const problem = problemSchema.safeParse(await response.json().catch(() => undefined))
  if (!problem.success || !isFaultCode(problem.data.code)) {
    throw unexpected(`HTTP status ${response.status}`)
  }
  throw new ShoalError(problem.data.code, problem.data.detail, { details: problem.data.details })
}

const problemSchema = z.object({
  code: z.string(),
  detail: z.string(),
  details: z.record(z.string(), z.unknown()).default({}),
})

async function openEvents(
  http: Http,
  lastEventId: string | undefined,
  signal: AbortSignal,
): Promise<ReadableStream<Uint8Array>> {
  const headers = {
    authorization: http.authorization,
    ...(lastEventId !== undefined && { 'last-event-id': lastEventId }),
  }
  const request = new Request(`${http.url}${ROUTES.events.path}`, { headers, signal })
  const { body } = await send(http, request, signal)
  return body ?? new ReadableStream()
}

/** The token of the daemon that owns `dataDir`. Throws `unauthorized` when it cannot be read. */
export function readToken(dataDir: string): string {
  const path = join(dataDir, 'api-token')
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (cause) {
    throw new ShoalError('unauthorized', `cannot read ${path}: ${messageOf(cause)}`, { cause })
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (cause) {
    // EPERM: it lives and belongs to somebody else.
    return cause instanceof Error && 'code' in cause && cause.code === 'EPERM'
  }
}
