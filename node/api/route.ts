/** What a route of the local API is made of. */
import { z } from 'zod'
import type { FaultCode } from '../../src/errors.ts'

export interface Route<I extends z.ZodObject = z.ZodObject, O extends z.ZodType = z.ZodType> {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  path: string
  /** One sentence for documentation. */
  summary: string
  /**
   * One flat object. Names in the path's braces come from the path; the rest from the query of a GET or DELETE, from
   * the JSON body of a POST or PUT, or from headers where the body is bytes (`outerStep` from `Outer-Step`).
   */
  input: I
  /** The JSON answer, or the headers of an answer in bytes. */
  output: O
  /** The body is `application/octet-stream` of at most `bytesMax` bytes: `what` it is, for people. */
  body?: { what: string; bytesMax: number }
  /** Answers with bytes, or with server-sent events of `output`. */
  answer?: 'bytes' | 'events'
  /** Of bytes; default `application/octet-stream`. */
  contentType?: string
  /** Needs no token. */
  open?: true
  /** What a call may take, of an answer in bytes until it begins; default `DEADLINES.apiMs`. */
  deadlineMs?: number
  /** Code of the fault for input that does not parse; default `body_invalid`. */
  invalid?: FaultCode
  /** The command that does the same, or why there is none. */
  command: string | { none: string }
}

/** A route that answers with one JSON value. */
export type JsonRoute<I extends z.ZodObject, O extends z.ZodType> = Route<I, O> & {
  answer?: never
}
/** A route that answers with bytes, and with `output` in its headers. */
export type BytesRoute<I extends z.ZodObject, O extends z.ZodType> = Route<I, O> & {
  answer: 'bytes'
}

/** Names in the braces of a route's path. */
export function pathParameters(route: Route): string[] {
  return [...route.path.matchAll(/\{(\w+)\}/g)].map(([, name = '']) => name)
}

/** Where the fields of a route's input come from that are not in its path. */
export function sourceOf({ method, body }: Route): 'query' | 'json' | 'headers' {
  if (body !== undefined) return 'headers'
  return method === 'GET' || method === 'DELETE' ? 'query' : 'json'
}

/** `outerStep` as `outer-step`. */
export function headerName(field: string): string {
  return field.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

/** Fields of an object as headers: lists by comma, without those that are null or undefined. */
export function toHeaders(fields: Readonly<Record<string, unknown>>): Record<string, string> {
  const entries = Object.entries(fields).filter(
    ([, value]) => value !== undefined && value !== null,
  )
  return Object.fromEntries(
    entries.map(([name, value]) => [
      headerName(name),
      Array.isArray(value) ? value.join(',') : String(value),
    ]),
  )
}

/** Values of headers and of query strings are text; programs in JavaScript may give numbers. */
export const numeric = (of: z.ZodNumber) =>
  z.union([z.number(), z.string().trim().min(1).transform(Number)]).pipe(of)

/** Of a query. */
export const switched = z.union([
  z.boolean(),
  z.enum(['true', 'false']).transform((text) => text === 'true'),
])

/** A list in a header. */
export const listed = z
  .union([
    z.array(z.string()),
    z.string().transform((text) => (text === '' ? [] : text.split(','))),
  ])
  .pipe(z.array(z.string()))

export const none = z.strictObject({})
export const oneRun = z.strictObject({ run: z.string().min(1).max(128) })
export const absolutePath = z.string().min(1).max(4096)
export const peerId = z
  .string()
  .regex(/^[1-9A-HJ-NP-Za-km-z]{46,64}$/, 'is no peer id such as 12D3KooW… (`shoal peers`)')
