/**
 * Keeps account of peers that break the rules. Each offence is counted, told in the log, and weighed; a peer that commits
 * too many in a while is sent away: its connections are closed, and for some minutes there are no new ones.
 *
 * What also happens to honest peers (a cable that is cut in the middle of a message) weighs little, and all is forgotten
 * with time. Identities are free, so this spares work and log lines; it is the limits that protect.
 */
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { createRateLimit } from './rate-limit.ts'

const WEIGHTS = {
  /** Bytes that are no message of the protocol, or a frame that is too long. */
  malformed: 25,
  /** A message that nothing asked for. */
  unexpected: 25,
  /** More streams than it may hold open. */
  too_many: 4,
  /** Silence in the middle of a message. */
  stalled: 4,
  not_reading: 4,
  /** More requests than it may make: to a relay, for holes, for dial-backs. */
  flood: 1,
  /** Addresses of others, given for its own. */
  foreign_address: 4,
} as const
export type Offence = keyof typeof WEIGHTS

/** A node that restarts every few seconds asks its neighbours more often than it may, and means no harm. */
const FORGIVEN_PER_MINUTE = 20
const BEARABLE = 90
const BAN_MS = 600_000
/** Of one peer. */
const LOG_LINES_PER_MINUTE = 4

export interface Offences {
  note(peer: string, offence: Offence, message: string): void
  isBanned(peer: string): boolean
}

export interface OffencesOptions {
  clock: Clock
  logger: Logger
  metrics: Metrics
  /** Closes all connections to a peer. */
  sendAway: (peer: string) => void
}

interface Account {
  weight: number
  weighedAt: number
  bannedUntil: number
}

export function createOffences({ clock, logger, metrics, sendAway }: OffencesOptions): Offences {
  // A map keeps the order of insertion: who offended longest ago is forgotten first.
  const accounts = new Map<string, Account>()
  const lines = createRateLimit({ perMinute: LOG_LINES_PER_MINUTE, clock })
  const isBanned = (peer: string): boolean =>
    (accounts.get(peer)?.bannedUntil ?? Number.NEGATIVE_INFINITY) > clock.now()

  return {
    isBanned,
    note(peer, offence, message) {
      metrics.add('peer_offences_total', 1, offence)
      if (lines.allows(peer)) logger.info('peer_offended', { peer, offence, message })
      if (isBanned(peer)) return
      const now = clock.now()
      const before = accounts.get(peer) ?? { weight: 0, weighedAt: now, bannedUntil: now }
      const forgiven = ((now - before.weighedAt) * FORGIVEN_PER_MINUTE) / 60_000
      const weight = Math.max(0, before.weight - forgiven) + WEIGHTS[offence]
      const isTooMuch = weight >= BEARABLE
      accounts.delete(peer)
      accounts.set(peer, {
        weight: isTooMuch ? 0 : weight,
        weighedAt: now,
        bannedUntil: isTooMuch ? now + BAN_MS : now,
      })
      const [oldest] = accounts.keys()
      if (accounts.size > LIMITS.offenders && oldest !== undefined) accounts.delete(oldest)
      if (!isTooMuch) return
      metrics.add('peers_banned_total', 1, offence)
      logger.warn('peer_banned', { peer, offence, forMs: BAN_MS })
      sendAway(peer)
    },
  }
}
