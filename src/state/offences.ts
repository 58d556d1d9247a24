/** Counts what peers do wrong and tells whom to ignore for a while. */
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'

const WINDOW_MS = 60_000

export interface Offences {
  add(peer: string, count: number): void
  ignored(peer: string): boolean
}

/** A peer with more than `LIMITS.badEnvelopes` within a minute is ignored for the minute after the last one. */
export function createOffences(clock: Clock): Offences {
  const offenders = new Map<string, { count: number; lastMs: number }>()
  const current = (peer: string): number => {
    const offender = offenders.get(peer)
    return offender === undefined || clock.now() - offender.lastMs > WINDOW_MS ? 0 : offender.count
  }
  return {
    add(peer, count) {
      if (count === 0) return
      const total = current(peer) + count
      // Deleted first, so that the first key is the one that has behaved for longest.
      offenders.delete(peer)
      offenders.set(peer, { count: total, lastMs: clock.now() })
      const [oldest] = offenders.keys()
      if (offenders.size > LIMITS.offenders && oldest !== undefined) offenders.delete(oldest)
    },
    ignored: (peer) => current(peer) > LIMITS.badEnvelopes,
  }
}
