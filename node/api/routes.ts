/**
 * The local API as one table: server, typed client and documentation derive from it.
 *
 * Input is one flat object per route. Names in the path's braces come from the path; the rest comes from the query
 * of a GET and from the JSON body of a POST. Faults are RFC 9457 problems that carry our code.
 */
import { z } from 'zod'
import type { FaultCode } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import type { Link } from '../../src/net/network.ts'
import type { NodeStatus } from '../../src/node.ts'
import { runSpecSchema } from '../../src/run/manifest.ts'
import { TRAINER_KINDS } from '../../src/run/trainer.ts'
import {
  checkpointViewSchema,
  runEventSchema,
  runListingSchema,
  runViewSchema,
} from '../../src/run/view.ts'

export interface Route<I extends z.ZodObject = z.ZodObject, O extends z.ZodType = z.ZodType> {
  method: 'GET' | 'POST'
  path: string
  /** One sentence for documentation. */
  summary: string
  input: I
  output: O
  /** Needs no token. */
  open?: true
  /** Answers with server-sent events of `output` instead of one JSON object. */
  stream?: true
  /** What a call may take; default `DEADLINES.apiMs`. */
  deadlineMs?: number
  /** Code of the fault for input that does not parse; default `body_invalid`. */
  invalid?: FaultCode
}

const nodeStatusSchema = z.object({
  peerId: z.string(),
  addresses: z.array(z.string()),
  reachability: z.enum(['unknown', 'public']),
  links: z.number(),
  runs: z.number(),
  engine: z.string(),
  uptimeMs: z.number(),
  counters: z.record(z.string(), z.number()),
}) satisfies z.ZodType<NodeStatus>

const linkSchema = z.object({
  peer: z.string(),
  address: z.string(),
  transport: z.string(),
  direct: z.boolean(),
  direction: z.enum(['inbound', 'outbound']),
  rttMs: z.number().nullable(),
  ageMs: z.number(),
}) satisfies z.ZodType<Link>

const boardValueSchema = z.union([z.string().max(4096), z.number(), z.boolean(), z.null()])
const boardSchema = z.object({ board: z.record(z.string(), boardValueSchema) })

const none = z.strictObject({})
const oneRun = z.strictObject({ run: z.string().min(1).max(128) })
const path = z.string().min(1).max(4096)
/** Default: the embedded engine where it knows the model. */
const trainer = z.enum(TRAINER_KINDS).optional()
/** Query strings know no booleans. */
const querySwitch = z.union([
  z.boolean(),
  z.enum(['true', 'false']).transform((text) => text === 'true'),
])

export const ROUTES = {
  health: {
    method: 'GET',
    path: '/healthz',
    summary: 'Whether the daemon is up.',
    input: none,
    output: z.object({ ok: z.literal(true) }),
    open: true,
  },
  node: {
    method: 'GET',
    path: '/v1/node',
    summary: 'This node: identity, addresses, reachability, counters.',
    input: none,
    output: nodeStatusSchema.extend({
      version: z.string(),
      apiUrl: z.string(),
      dataDir: z.string(),
      pid: z.number(),
    }),
  },
  peers: {
    method: 'GET',
    path: '/v1/peers',
    summary: 'Open connections to other peers.',
    input: none,
    output: z.object({ peers: z.array(linkSchema) }),
  },
  connect: {
    method: 'POST',
    path: '/v1/peers',
    summary: 'Dials a peer by multiaddr or peer id.',
    input: z.strictObject({ address: z.string().min(1).max(1024) }),
    output: z.object({ peer: z.string() }),
  },
  runs: {
    method: 'GET',
    path: '/v1/runs',
    summary: 'Own runs, and with `discover` also public ones found through the DHT.',
    input: z.strictObject({ discover: querySwitch.default(false) }),
    output: z.object({ runs: z.array(runListingSchema) }),
    deadlineMs: 2 * DEADLINES.findProvidersMs + DEADLINES.rpcMs,
  },
  createRun: {
    method: 'POST',
    path: '/v1/runs',
    summary: 'Creates a run from a spec whose data is an absolute path on this machine.',
    input: z.strictObject({ spec: runSpecSchema, trainer }),
    output: runViewSchema,
    deadlineMs: DEADLINES.apiLongMs,
    invalid: 'spec_invalid',
  },
  joinRun: {
    method: 'POST',
    path: '/v1/runs/join',
    summary:
      'Takes part in a run named by its id or `shoal:` link, with own data where it shares none.',
    input: z.strictObject({
      run: z.string().min(1).max(4096),
      data: path.optional(),
      trainer,
    }),
    output: runViewSchema,
    deadlineMs: DEADLINES.apiLongMs,
  },
  showRun: {
    method: 'GET',
    path: '/v1/runs/{run}',
    summary: 'State of one run.',
    input: oneRun,
    output: runViewSchema,
  },
  leaveRun: {
    method: 'POST',
    path: '/v1/runs/{run}/leave',
    summary: 'Takes part no longer.',
    input: oneRun,
    output: z.object({ left: z.string() }),
  },
  invite: {
    method: 'GET',
    path: '/v1/runs/{run}/invite',
    summary: 'The link that lets others join.',
    input: oneRun,
    output: z.object({ link: z.string() }),
  },
  board: {
    method: 'GET',
    path: '/v1/runs/{run}/board',
    summary: "Entries of the admins' board.",
    input: oneRun,
    output: boardSchema,
  },
  writeBoard: {
    method: 'POST',
    path: '/v1/runs/{run}/board',
    summary: 'Writes an entry of the board, or deletes it when no value is given. Admins only.',
    input: oneRun.extend({
      key: z.string().min(1).max(64),
      value: boardValueSchema.optional(),
    }),
    output: boardSchema,
  },
  checkpoints: {
    method: 'GET',
    path: '/v1/runs/{run}/checkpoints',
    summary: 'Checkpoints that this node holds.',
    input: oneRun,
    output: z.object({ checkpoints: z.array(checkpointViewSchema) }),
  },
  exportCheckpoint: {
    method: 'POST',
    path: '/v1/runs/{run}/checkpoints/export',
    summary: 'Writes a checkpoint, by default the newest, as a Hugging Face style folder.',
    input: oneRun.extend({ folder: path, checkpoint: z.string().max(128).optional() }),
    output: z.object({
      folder: z.string(),
      files: z.array(z.object({ name: z.string(), bytes: z.number() })),
    }),
    deadlineMs: DEADLINES.apiLongMs,
  },
  events: {
    method: 'GET',
    path: '/v1/events',
    summary: 'Domain events as they happen; resumes after the `Last-Event-ID` header.',
    input: none,
    output: runEventSchema,
    stream: true,
  },
  shutdown: {
    method: 'POST',
    path: '/v1/shutdown',
    summary: 'Stops the daemon cleanly.',
    input: none,
    output: z.object({ stopping: z.literal(true) }),
  },
} as const satisfies Record<string, Route>

/** Routes that answer a call with one JSON object. */
export type CallId = Exclude<keyof typeof ROUTES, 'events'>

/** Names in the braces of a route's path. */
export function pathParameters(route: Route): string[] {
  return [...route.path.matchAll(/\{(\w+)\}/g)].map(([, name = '']) => name)
}
