/** How often a peer may ask for something: a token bucket for each, and a bound on how many are remembered. */
import type { Clock } from '../clock.ts'

/** Peers remembered; the ones that asked longest ago are forgotten first. */
const PEERS = 1024

export interface RateLimit {
  /** Counts the request when it is allowed. */
  allows(peer: string): boolean
}

/** `burst`: requests that may come at once, by default all of a minute. */
export function createRateLimit({
  perMinute,
  burst = perMinute,
  clock,
}: {
  perMinute: number
  burst?: number
  clock: Clock
}): RateLimit {
  const buckets = new Map<string, { tokens: number; countedAt: number }>()
  return {
    allows(peer) {
      const now = clock.now()
      const { tokens, countedAt } = buckets.get(peer) ?? { tokens: burst, countedAt: now }
      const refilled = Math.min(burst, tokens + ((now - countedAt) * perMinute) / 60_000)
      const isAllowed = refilled >= 1
      buckets.delete(peer)
      buckets.set(peer, { tokens: isAllowed ? refilled - 1 : refilled, countedAt: now })
      const [oldest] = buckets.keys()
      if (buckets.size > PEERS && oldest !== undefined) buckets.delete(oldest)
      return isAllowed
    },
  }
}
