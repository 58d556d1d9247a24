/**
 * How much may be under way at once: what the line holds, and as much again.
 *
 * SCTP, below a data channel, fills the queue of a line until it overflows, and then needs seconds to recover: over 100
 * Mbit/s and 20 ms it was left with a tenth of the line, and with pauses in which a peer seems dead. The product of the
 * best rate and the shortest round trip keeps the queue short (Cardwell et al. 2016, "BBR: congestion-based congestion
 * control"); it needs nothing but the other side's word of how much it has taken, which also stops a sender whose
 * receiver pauses.
 */
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'

/** Where it begins, and never less: some messages. */
export const SMALLEST_WINDOW_BYTES = 128 << 10
const GAIN = 2
/** Shorter round trips are of one machine or LAN, where it is the scheduler that takes time. */
const ROUND_TRIP_MIN_MS = 4
/** Then the queue is let run empty once: what seemed the shortest round trip may be a queue's. */
const ROUND_TRIP_VALID_MS = 10_000
/** The best rate is that of the last one or two of these. */
const RATE_VALID_MS = 2_000
/** What takes longer was lost on the way and sent once more: less may be under way for a while. */
const LATE = { roundTrips: 3, ms: 50 }
const CUT = 0.7
/** Added to the ceiling for each window that arrives in time. */
const STEP_BYTES = 16 << 10
/** Sent since the last one was noted. */
const FLIGHT_BYTES = 8 << 10

export interface SendWindow {
  isOpen(): boolean
  /** Bytes sent in all that the other side has not yet taken. */
  bytesInFlight(): number
  sent(bytes: number): void
  /** `total`: what the other side has taken in all. False when that cannot be. */
  taken(total: number): boolean
}

interface Flight {
  /** Bytes sent until then. */
  total: number
  sentAt: number
  /** Bytes that were known to be taken then. */
  takenBefore: number
  /** The window was the limit, not what there was to send. */
  wasFull: boolean
}

export function createSendWindow(clock: Clock): SendWindow {
  const flights: Flight[] = []
  const rate = createRecentBest(RATE_VALID_MS)
  let sent = 0
  let taken = 0
  let windowBytes = SMALLEST_WINDOW_BYTES
  let roundTrip = { ms: Number.POSITIVE_INFINITY, at: clock.now() }
  let drainedSince: number | undefined
  let ceiling: number = LIMITS.webRtcWindowBytes
  let cutAt = Number.NEGATIVE_INFINITY

  function judge(ms: number, sentAt: number, bytes: number): void {
    if (ms <= LATE.roundTrips * roundTrip.ms + LATE.ms) {
      ceiling = Math.min(ceiling + (STEP_BYTES * bytes) / windowBytes, LIMITS.webRtcWindowBytes)
    } else if (sentAt >= cutAt) {
      ceiling = Math.max(CUT * windowBytes, SMALLEST_WINDOW_BYTES)
      cutAt = clock.now()
    }
  }

  function learn({ sentAt, takenBefore, wasFull }: Flight, bytes: number): void {
    const now = clock.now()
    const ms = Math.max(now - sentAt, 0.1)
    const isDrained = drainedSince !== undefined && sentAt >= drainedSince
    if (ms <= roundTrip.ms || isDrained) {
      roundTrip = { ms, at: now }
      drainedSince = undefined
    }
    judge(ms, sentAt, bytes)
    const bytesPerMs = (taken - takenBefore) / ms
    if (wasFull || bytesPerMs > rate.best()) rate.note(bytesPerMs, now)
    if (now - roundTrip.at > ROUND_TRIP_VALID_MS) drainedSince ??= now
    const held = rate.best() * Math.max(roundTrip.ms, ROUND_TRIP_MIN_MS)
    windowBytes =
      drainedSince === undefined
        ? Math.min(Math.max(GAIN * held, SMALLEST_WINDOW_BYTES), ceiling)
        : SMALLEST_WINDOW_BYTES
  }

  return {
    isOpen: () => sent - taken < windowBytes,
    bytesInFlight: () => sent - taken,
    sent(bytes) {
      sent += bytes
      if (sent - (flights.at(-1)?.total ?? taken) < FLIGHT_BYTES) return
      const wasFull = sent - taken >= 0.75 * windowBytes
      flights.push({ total: sent, sentAt: clock.now(), takenBefore: taken, wasFull })
    },
    taken(total) {
      if (total < taken || total > sent) return false
      const bytes = total - taken
      taken = total
      const next = flights.findIndex((flight) => flight.total > total)
      const landed = flights.splice(0, next === -1 ? flights.length : next)
      const last = landed.at(-1)
      if (last !== undefined) learn(last, bytes)
      return true
    },
  }
}

interface RecentBest {
  best(): number
  note(value: number, at: number): void
}

/** The highest of what was noted in about the last `validMs`, as long as something is noted. */
function createRecentBest(validMs: number): RecentBest {
  let [before, current] = [0, 0]
  let since = Number.NEGATIVE_INFINITY
  return {
    best: () => Math.max(before, current),
    note(value, at) {
      if (at - since > validMs) {
        ;[before, current] = [current, 0]
        since = at
      }
      current = Math.max(current, value)
    },
  }
}
