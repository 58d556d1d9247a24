/** How fast the swarm trains, as its members tell it: for curves of all of them, and not of this node alone. */
import { z } from 'zod'
import { LIMITS } from '../limits.ts'
import type { Member } from '../state/shared-state.ts'

export const throughputSchema = z.object({
  /** Tokens per second of all who train, this node included. */
  together: z.number(),
  /** Tokens per second of the others, by peer id: of the first `LIMITS.chartedPeers` in the order of their ids. */
  others: z.record(z.string(), z.number()),
})
export type Throughput = z.infer<typeof throughputSchema>

/** What a peer may claim; sums of it stay finite. */
const TOKENS_PER_SECOND_MAX = 1e15

export function throughputOf(own: number, others: readonly Member[]): Throughput {
  const rates = others
    .filter(({ record }) => record.status === 'training' || record.status === 'merging')
    .map(({ peer, record }) => ({
      peer,
      tokensPerSecond: Math.min(record.tokensPerSecond, TOKENS_PER_SECOND_MAX),
    }))
    .sort((a, b) => (a.peer < b.peer ? -1 : 1))
  const charted = rates.slice(0, LIMITS.chartedPeers)
  return {
    together: Math.round(rates.reduce((sum, { tokensPerSecond }) => sum + tokensPerSecond, own)),
    others: Object.fromEntries(charted.map(({ peer, tokensPerSecond }) => [peer, tokensPerSecond])),
  }
}
