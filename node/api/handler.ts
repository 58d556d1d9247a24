/** A handler of a route: what came in is parsed by the route's input schema, what goes out is typed by its output. */
import type { z } from 'zod'
import { parseInput } from '../validation.ts'
import type { ConnectionEnds } from './connection-owner.ts'
import type { Download } from './octets.ts'
import type { BytesRoute, JsonRoute, Route } from './route.ts'

export interface CallContext {
  /** Fires at the route's deadline and when the caller hangs up. */
  signal: AbortSignal
  /** The body of a route that takes bytes. */
  body: AsyncIterable<Uint8Array>
  /** Its length, where the caller has told it. */
  bodyBytes: number | undefined
  /** Of the connection that the call came by. */
  ends: ConnectionEnds
}

export type Answer = { json: unknown } | { download: Download<Record<string, unknown>> }

export interface Handler {
  route: Route
  call: (raw: Record<string, unknown>, context: CallContext) => Promise<Answer>
}

export function handler<I extends z.ZodObject, O extends z.ZodType>(
  route: JsonRoute<I, O>,
  answer: (input: z.output<I>, context: CallContext) => z.input<O> | Promise<z.input<O>>,
): Handler {
  return {
    route,
    call: async (raw, context) => ({ json: await answer(parsed(route, raw), context) }),
  }
}

export function bytesHandler<I extends z.ZodObject, O extends z.ZodObject>(
  route: BytesRoute<I, O>,
  answer: (input: z.output<I>, context: CallContext) => Promise<Download<z.output<O>>>,
): Handler {
  return {
    route,
    call: async (raw, context) => ({ download: await answer(parsed(route, raw), context) }),
  }
}

function parsed<I extends z.ZodObject>(route: Route<I>, raw: Record<string, unknown>): z.output<I> {
  const code = route.invalid ?? 'body_invalid'
  return parseInput(route.input, raw, code, `${route.method} ${route.path}`)
}
