/** The course of a run, made from its event log: what curves and timelines are drawn from. */
import { z } from 'zod'
import type { LoggedEvent } from './event-log.ts'
import { throughputSchema } from './throughput.ts'
import { roundViewSchema } from './view.ts'

export const historyStepSchema = z.object({
  /** Completed outer steps. */
  outerStep: z.number(),
  timeMs: z.number(),
  loss: z.number(),
  tokens: z.number(),
  tokensPerSecond: z.number(),
  consensusDistance: z.number().nullable(),
  throughput: throughputSchema.optional(),
  ...roundViewSchema.pick({
    outcome: true,
    partners: true,
    durationMs: true,
    bytesSent: true,
    bytesReceived: true,
  }).shape,
})
/** What an outer step came to. */
export type HistoryStep = z.infer<typeof historyStepSchema>

export const runHistorySchema = z.object({
  /** Number of the newest event in it: to ask for what comes after. */
  newest: z.number(),
  steps: z.array(historyStepSchema),
  validations: z.array(z.object({ outerStep: z.number(), timeMs: z.number(), loss: z.number() })),
  /** Members that came and went; those that were there when this node stopped come again when it is back. */
  members: z.array(
    z.object({ timeMs: z.number(), peer: z.string(), change: z.enum(['joined', 'left']) }),
  ),
})
/** The course of a run as far as this node has seen it. */
export type RunHistory = z.infer<typeof runHistorySchema>

/** Members that came or went that a history tells of; a swarm under churn has thousands. */
const CHANGES_MAX = 2_000

/** Of more than `points` outer steps some are left out, evenly, never the newest. */
export async function historyOf(
  events: AsyncIterable<LoggedEvent> | Iterable<LoggedEvent>,
  points: number,
): Promise<RunHistory> {
  const steps: HistoryStep[] = []
  const validations: RunHistory['validations'] = []
  const members: RunHistory['members'] = []
  let newest = 0
  for await (const { number, timeMs, event } of events) {
    newest = number
    if (event.type === 'outer_step') {
      const { outerStep, loss, tokens, tokensPerSecond, consensusDistance, throughput } = event
      const { outcome, partners, durationMs, bytesSent, bytesReceived } = event.round
      const round = { outcome, partners, durationMs, bytesSent, bytesReceived }
      const speed = { tokensPerSecond, throughput }
      const done = { outerStep, timeMs, loss, tokens, consensusDistance, ...speed }
      append(steps, { ...done, ...round })
    }
    if (event.type === 'validation') {
      const { outerStep, loss } = event
      append(validations, { outerStep, timeMs, loss })
    }
    if (event.type === 'member') members.push({ timeMs, peer: event.peer, change: event.change })
  }
  return {
    newest,
    steps: thinned(steps, points),
    validations: thinned(validations, points),
    members: members.slice(-CHANGES_MAX),
  }
}

/** In place of what was told of the same outer step, and of later ones: a peer may have gone back to where others are. */
function append<T extends { outerStep: number }>(told: T[], next: T): void {
  while ((told.at(-1)?.outerStep ?? -1) >= next.outerStep) told.pop()
  told.push(next)
}

function thinned<T>(values: readonly T[], points: number): T[] {
  const every = Math.ceil(values.length / points)
  return values.filter((_, index) => (values.length - 1 - index) % every === 0)
}
