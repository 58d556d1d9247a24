/** What a run looks like from outside: plain data for the API, the CLI and the dashboard. */
import { z } from 'zod'
import { PEER_STATUSES } from '../state/record.ts'
import { throughputSchema } from './throughput.ts'

export const RUN_STATUSES = [
  'fetching', // manifest, weights or data are on their way
  'waiting', // for `minPeers`
  'training',
  'silent', // the outside trainer is not heard
  'merging',
  'finished',
  'paused', // by the board
  'failed',
] as const

const nullableNumber = z.number().nullable()

export const roundViewSchema = z.object({
  outerStep: z.number(),
  outcome: z.enum(['averaged', 'solo', 'stale']),
  partners: z.array(z.string()),
  durationMs: z.number(),
  bytesSent: z.number(),
  bytesReceived: z.number(),
  /** Inner steps of the next outer step that were done before its result was applied. */
  overlapSteps: z.number().optional(),
  /** Why the round was not averaged with the whole group; empty when it was. */
  reasons: z.array(z.string()),
})
export type RoundView = z.infer<typeof roundViewSchema>

export const memberViewSchema = z.object({
  peer: z.string(),
  self: z.boolean(),
  status: z.enum(PEER_STATUSES),
  outerStep: z.number(),
  tokens: z.number(),
  loss: nullableNumber,
  tokensPerSecond: z.number(),
  partners: z.array(z.string()),
  bytesSent: z.number(),
  bytesReceived: z.number(),
  ageMs: z.number(),
})

export const checkpointViewSchema = z.object({
  cid: z.string(),
  outerStep: z.number(),
  bytes: z.number(),
  /** Whether it is the product of the final merge. */
  final: z.boolean(),
})
/** A checkpoint that this node holds. */
export type CheckpointView = z.infer<typeof checkpointViewSchema>

export const runViewSchema = z.object({
  id: z.string(),
  name: z.string(),
  public: z.boolean(),
  /** Manifest hyper-parameters that people look for. */
  rule: z.string(),
  parameters: z.number(),
  outerSteps: z.number(),
  innerSteps: z.number(),
  status: z.enum(RUN_STATUSES),
  /** Completed outer steps. */
  outerStep: z.number(),
  innerStep: z.number(),
  tokens: z.number(),
  /** Training loss of the last inner steps, nats per token. */
  loss: nullableNumber,
  lossStart: nullableNumber,
  validationLoss: nullableNumber,
  tokensPerSecond: z.number(),
  consensusDistance: nullableNumber,
  /** Share of the wall time of training, on this node since its start, in which compute waited for the network. */
  waitShare: nullableNumber,
  /** Of the run's rounds and final merge, as served to and pulled from partners. */
  bytesSent: z.number(),
  bytesReceived: z.number(),
  round: roundViewSchema.nullable(),
  rounds: z.object({ averaged: z.number(), solo: z.number(), stale: z.number() }),
  members: z.array(memberViewSchema),
  checkpoints: z.array(checkpointViewSchema),
  board: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()])),
  /** Parameters' sha-256 after the last outer step. */
  parametersHash: z.string().nullable(),
  error: z.object({ code: z.string(), message: z.string() }).nullable(),
})
/** How a run stands on this node. */
export type RunView = z.infer<typeof runViewSchema>

/** An entry of `run list`: own runs and public ones found through the DHT. */
export const runListingSchema = z.object({
  id: z.string(),
  name: z.string(),
  /** Status when this node takes part, else null. */
  status: z.enum(RUN_STATUSES).nullable(),
  parameters: z.number(),
  outerStep: z.number(),
  outerSteps: z.number(),
  peers: z.number(),
  /** Peers that told of it. */
  sources: z.array(z.string()),
})
/** A run in a list: own, or found through the DHT. */
export type RunListing = z.infer<typeof runListingSchema>

/** Domain events: data, no prose. The same objects go to the log, to SSE and to the event history. */
export const runEventSchema = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('run_status'),
    run: z.string(),
    status: z.enum(RUN_STATUSES),
    outerStep: z.number(),
  }),
  z.object({
    type: z.literal('inner_progress'),
    run: z.string(),
    outerStep: z.number(),
    innerStep: z.number(),
    loss: z.number(),
  }),
  z.object({
    type: z.literal('outer_step'),
    run: z.string(),
    outerStep: z.number(),
    loss: z.number(),
    tokens: z.number(),
    tokensPerSecond: z.number(),
    consensusDistance: nullableNumber,
    /** Not in logs of earlier versions. */
    throughput: throughputSchema.optional(),
    round: roundViewSchema,
  }),
  z.object({
    type: z.literal('validation'),
    run: z.string(),
    outerStep: z.number(),
    loss: z.number(),
  }),
  z.object({ type: z.literal('checkpoint'), run: z.string(), checkpoint: checkpointViewSchema }),
  z.object({
    type: z.literal('member'),
    run: z.string(),
    peer: z.string(),
    change: z.enum(['joined', 'left']),
  }),
  z.object({
    type: z.literal('run_failed'),
    run: z.string(),
    code: z.string(),
    message: z.string(),
  }),
])
/** What happens in a run: data, no prose. */
export type RunEvent = z.infer<typeof runEventSchema>
