/** What a robust peer remembers of others: who was rejected again and again is left out for a while. */
import { z } from 'zod'
import { setLast } from './membership.ts'

/** Weight of the newest verdict, the reputation below which a peer is left out, and for how many outer steps. */
const RATE = 0.2
const LEAST = 0.3
const IGNORED_STEPS = 20
/** Below this a reputation is worth keeping over a restart: it takes one rejection. */
const SPOTLESS = 0.9
/** Peers kept over a restart, those met last: a run with more liars than that has other sorrows. */
export const REPUTATIONS_STORED = 256

export const reputationSchema = z.strictObject({
  peer: z.string().max(128),
  /** 1 of who was never rejected, 0 of who always was. */
  value: z.number().min(0).max(1),
  /** The outer step from which the peer is listened to again. */
  ignoredUntil: z.number().int().min(0),
})
export type Reputation = z.infer<typeof reputationSchema>

export interface Reputations {
  isIgnored(peer: string, outerStep: number): boolean
  note(peer: string, isAccepted: boolean, outerStep: number): void
  /** Of those who were rejected lately, for `restore` after a restart; who was met last is last. */
  tarnished(): Reputation[]
  /** Takes over what was stored, but for peers met since. */
  restore(stored: readonly Reputation[]): void
}

export function createReputations(): Reputations {
  const known = new Map<string, Reputation>()
  const remember = (reputation: Reputation): void => setLast(known, reputation.peer, reputation)
  return {
    isIgnored(peer, outerStep) {
      const until = known.get(peer)?.ignoredUntil ?? 0
      // This peer may have gone back since.
      return outerStep < until && outerStep >= until - 1 - IGNORED_STEPS
    },
    note(peer, isAccepted, outerStep) {
      const before = known.get(peer)?.value ?? 1
      const value = (1 - RATE) * before + (isAccepted ? RATE : 0)
      const isBad = !isAccepted && value < LEAST
      remember({ peer, value, ignoredUntil: isBad ? outerStep + 1 + IGNORED_STEPS : 0 })
    },
    tarnished: () =>
      [...known.values()].filter(({ value }) => value < SPOTLESS).slice(-REPUTATIONS_STORED),
    restore(stored) {
      for (const reputation of stored) if (!known.has(reputation.peer)) remember(reputation)
    },
  }
}
