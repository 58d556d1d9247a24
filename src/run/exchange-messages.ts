/** The messages of the exchange of contributions (`exchange.ts` answers, `contribution-pull.ts` asks). */
import { z } from 'zod'
import { LIMITS } from '../limits.ts'
import { contributionHeaderSchema, PHASES } from './contribution.ts'

export const REFUSALS = [
  'not_ready',
  'stale',
  'unknown_run',
  'quota',
  'schema',
  'invalid',
  'unreachable',
] as const
export type Refusal = (typeof REFUSALS)[number]

const keyShape = {
  run: z.string().max(128),
  outerStep: z.number().int().min(0),
  phase: z.enum(PHASES),
}
/** Of `round/offer` and `round/set`: the peer holds its answer back for up to `waitMs`. */
export const waitingRequestSchema = z.strictObject({
  ...keyShape,
  waitMs: z.number().int().min(0).max(600_000),
})
export const chunkRequestSchema = z.strictObject({
  ...keyShape,
  index: z.number().int().min(0).max(4096),
})
const refusalSchema = z.strictObject({
  refusal: z.enum(REFUSALS),
  /** Completed there. */
  outerStep: z.number().int().min(0),
})
export const offerReplySchema = z.union([
  z.strictObject({ header: contributionHeaderSchema }),
  refusalSchema,
])
export type OfferReply = z.infer<typeof offerReplySchema>
export const setReplySchema = z.union([
  z.strictObject({ peers: z.array(z.string().max(128)).max(LIMITS.groupPeers) }),
  refusalSchema,
])
export type SetReply = z.infer<typeof setReplySchema>

/** One poll waits no longer than this at the other side: what has not come by then is asked for again. */
export const POLL_MS = 15_000
/** Patience that the way of an answer back is given. */
export const ANSWER_MS = 1_000
