/**
 * `net/clock` and `net/throughput`: how far this node's clock is off, and how fast bytes go to a peer and back, measured
 * with the peer's help, which it gives rarely.
 */
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { PeerRpc } from './network.ts'
import { createRateLimit } from './rate-limit.ts'

const CLOCK_METHOD = 'net/clock'
const THROUGHPUT_METHOD = 'net/throughput'
/** Small enough for a slow line to show some in the time, and for a fast one no more overhead than a chunk of a round. */
const PIECE_BYTES = 128 << 10
const MESSAGE_BYTES = PIECE_BYTES + 1024
const PIECES_IN_FLIGHT = 8
/** Of one direction: what ends first. */
const PIECES_MAX = 256
const MEASURE_MS = 3_000
/** Given to one peer: one measurement, and another some minutes later. */
const PIECES_PER_MINUTE = 60
const PIECES_BURST = 600
const CLOCKS_PER_MINUTE = 30

const clockSchema = z.strictObject({ nowMs: z.number() })
const piece = z.instanceof(Uint8Array).refine(({ length }) => length <= PIECE_BYTES)
const requestSchema = z.strictObject({
  bytes: z.int().min(0).max(PIECE_BYTES),
  padding: piece,
})

export interface Throughput {
  uploadBytesPerSecond: number
  downloadBytesPerSecond: number
}

/** Helps others to measure. Returns the function that ends it. */
export function serveMeasurements(rpc: PeerRpc, clock: Clock): () => void {
  const clocks = createRateLimit({ perMinute: CLOCKS_PER_MINUTE, clock })
  const pieces = createRateLimit({ perMinute: PIECES_PER_MINUTE, burst: PIECES_BURST, clock })
  const refuse = (): never => {
    throw new ShoalError('limit_exceeded', 'this peer has measured enough: ask again in minutes')
  }
  const removers = [
    rpc.handle(CLOCK_METHOD, async (_request, { peer }) => {
      if (!clocks.allows(peer)) refuse()
      return encodeCbor({ nowMs: Date.now() })
    }),
    rpc.handle(THROUGHPUT_METHOD, async (request, { peer }) => {
      if (!pieces.allows(peer)) refuse()
      const { bytes } = parseMessage(requestSchema, request, 'measurement', MESSAGE_BYTES)
      return new Uint8Array(bytes)
    }),
  ]
  return () => {
    for (const remove of removers) remove()
  }
}

/** By how much this node's clock is ahead of the peer's, in milliseconds, within half a round trip. */
export async function measureClock(
  rpc: PeerRpc,
  peer: string,
  signal: AbortSignal,
): Promise<number> {
  const askedMs = Date.now()
  const reply = await rpc.call(peer, CLOCK_METHOD, new Uint8Array(), { signal })
  const answeredMs = Date.now()
  return (askedMs + answeredMs) / 2 - parseMessage(clockSchema, reply, 'clock', 64).nowMs
}

/** One direction after the other, some seconds each at most. Rejects when the peer does not help. */
export async function measureThroughput(
  rpc: PeerRpc,
  peer: string,
  clock: Clock,
  signal: AbortSignal,
): Promise<Throughput> {
  const padding = crypto.getRandomValues(new Uint8Array(1 << 16))
  const full = new Uint8Array(PIECE_BYTES)
  for (let at = 0; at < full.length; at += padding.length) full.set(padding, at)
  const there = encodeCbor({ bytes: 0, padding: full })
  const back = encodeCbor({ bytes: PIECE_BYTES, padding: new Uint8Array() })
  return {
    uploadBytesPerSecond: await rateOf(rpc, peer, there, clock, signal),
    downloadBytesPerSecond: await rateOf(rpc, peer, back, clock, signal),
  }
}

async function rateOf(
  rpc: PeerRpc,
  peer: string,
  request: Uint8Array,
  clock: Clock,
  signal: AbortSignal,
): Promise<number> {
  const options = { signal, lane: 'bulk' } as const
  // Opens what is to be opened.
  await rpc.call(
    peer,
    THROUGHPUT_METHOD,
    encodeCbor({ bytes: 0, padding: new Uint8Array() }),
    options,
  )
  const startedAt = clock.now()
  let endedAt = startedAt
  let asked = 0
  let bytes = 0
  const worker = async (): Promise<void> => {
    while (asked < PIECES_MAX && clock.now() - startedAt < MEASURE_MS) {
      asked++
      await rpc.call(peer, THROUGHPUT_METHOD, request, options)
      bytes += PIECE_BYTES
      endedAt = clock.now()
    }
  }
  await Promise.all(Array.from({ length: PIECES_IN_FLIGHT }, worker))
  return (bytes * 1000) / Math.max(1, endedAt - startedAt)
}
