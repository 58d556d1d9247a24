/**
 * One of the two processes of `npm run bench -- net`: a line of JSON asks for something, a line of JSON answers. Ends
 * with its stdin.
 */
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { ShoalError } from '../../src/errors.ts'
import { openRelay, openSink, openSource, PATHS } from './net-paths.ts'
import type { Sink } from './net-paths.ts'

const path = z.enum(PATHS)

const requestSchema = z.discriminatedUnion('do', [
  z.object({ do: z.literal('relay') }),
  z.object({ do: z.literal('source'), path, relay: z.string().optional() }),
  z.object({ do: z.literal('sink'), path, address: z.string() }),
  z.object({ do: z.literal('transfer'), bytes: z.int().positive() }),
  z.object({
    do: z.literal('calls'),
    bytes: z.int().positive(),
    concurrency: z.int().positive(),
    milliseconds: z.number().positive(),
  }),
  z.object({ do: z.literal('cpu') }),
])
export type PeerRequest = z.infer<typeof requestSchema>
export type CallsRequest = Extract<PeerRequest, { do: 'calls' }>

export const addressSchema = z.object({ address: z.string() })
export const readySchema = z.object({ ready: z.literal(true) })
export const cpuSchema = z.object({ cpuSeconds: z.number() })
export const transferSchema = z.object({ seconds: z.number() })
export const callsSchema = z.object({
  calls: z.number(),
  seconds: z.number(),
  p50Ms: z.number(),
  p99Ms: z.number(),
})
type Calls = z.infer<typeof callsSchema>

let sink: Sink | undefined

async function answer(request: PeerRequest): Promise<object> {
  switch (request.do) {
    case 'relay':
      return { address: await openRelay() }
    case 'source':
      return openSource(request.path, request.relay)
    case 'sink':
      sink = await openSink(request.path, request.address)
      return { ready: true }
    case 'transfer': {
      const startedMs = performance.now()
      await opened().transfer(request.bytes)
      return { seconds: (performance.now() - startedMs) / 1000 }
    }
    case 'calls':
      return measureCalls(opened(), request)
    case 'cpu': {
      const { user, system } = process.cpuUsage()
      return { cpuSeconds: (user + system) / 1e6 }
    }
    default:
      return request satisfies never
  }
}

function opened(): Sink {
  if (sink === undefined) throw new ShoalError('internal', 'no path is open')
  return sink
}

/** So many calls always under way, until the time is over. */
async function measureCalls(
  from: Sink,
  { bytes, concurrency, milliseconds }: CallsRequest,
): Promise<Calls> {
  const request = new Uint8Array(bytes)
  for (let at = 0; at < bytes; at += 65_536) {
    crypto.getRandomValues(request.subarray(at, at + 65_536))
  }
  const durations: number[] = []
  const startedMs = performance.now()
  const endsMs = startedMs + milliseconds
  const worker = async (): Promise<void> => {
    const into = new Uint8Array(bytes)
    for (;;) {
      const sentMs = performance.now()
      if (sentMs >= endsMs) return
      await from.echo(request, into)
      durations.push(performance.now() - sentMs)
    }
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  const seconds = (performance.now() - startedMs) / 1000
  const sorted = Float64Array.from(durations).sort()
  const quantile = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))] ?? 0
  return { calls: sorted.length, seconds, p50Ms: quantile(0.5), p99Ms: quantile(0.99) }
}

if (import.meta.main) {
  for await (const line of createInterface({ input: process.stdin })) {
    const reply = await answer(requestSchema.parse(JSON.parse(line)))
    process.stdout.write(`${JSON.stringify(reply)}\n`)
  }
  process.exit(0)
}
