/**
 * The local API as one table: server, typed client, OpenAPI document and commands derive from it.
 *
 * Faults are RFC 9457 problems that carry our code.
 */
import { z } from 'zod'
import type { NodeStatus } from '../../src/node.ts'
import { runEventSchema } from '../../src/run/view.ts'
import { DASHBOARD_ROUTES } from './dashboard-routes.ts'
import { BLOB_ROUTES, SERVICE_ROUTES } from './exchange-routes.ts'
import { linkSchema, natTypeSchema, NETWORK_ROUTES, reachabilitySchema } from './network-routes.ts'
import { OBSERVATION_ROUTES } from './observation-routes.ts'
import { none, type Route } from './route.ts'
import { RUN_ROUTES } from './run-routes.ts'
import { TRAINING_ROUTES } from './training-routes.ts'

const nodeStatusSchema = z.object({
  peerId: z.string(),
  addresses: z.array(z.string()),
  reachability: reachabilitySchema,
  nat: natTypeSchema,
  relays: z.array(z.string()),
  relaying: z
    .object({
      limits: z.object({
        reservations: z.number(),
        circuits: z.number(),
        circuitsPerPeer: z.number(),
        circuitBytes: z.number(),
        circuitMs: z.number(),
        bytesPerSecond: z.number(),
      }),
      use: z.object({ reservations: z.number(), circuits: z.number(), bytes: z.number() }),
    })
    .nullable(),
  links: z.number(),
  runs: z.number(),
  engine: z.string(),
  uptimeMs: z.number(),
  counters: z.record(z.string(), z.number()),
}) satisfies z.ZodType<NodeStatus>

const NODE_ROUTES = {
  health: {
    method: 'GET',
    path: '/healthz',
    summary: 'Whether the daemon is up.',
    input: none,
    output: z.object({ ok: z.literal(true) }),
    open: true,
    command: { none: '`shoal status` says more' },
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
    command: 'status',
  },
  peers: {
    method: 'GET',
    path: '/v1/peers',
    summary: 'Open connections to other peers.',
    input: none,
    output: z.object({ peers: z.array(linkSchema) }),
    command: 'peers',
  },
  connect: {
    method: 'POST',
    path: '/v1/peers',
    summary: 'Dials a peer by multiaddr or peer id.',
    input: z.strictObject({ address: z.string().min(1).max(1024) }),
    output: z.object({ peer: z.string() }),
    command: 'peers',
  },
  events: {
    method: 'GET',
    path: '/v1/events',
    summary:
      'Domain events as they happen; resumes after the `Last-Event-ID` header. An event `gap` tells how many have been missed meanwhile, `null` when the daemon was started again.',
    input: none,
    output: runEventSchema,
    answer: 'events',
    command: { none: '`shoal run show --watch` follows a run' },
  },
  shutdown: {
    method: 'POST',
    path: '/v1/shutdown',
    summary: 'Stops the daemon cleanly.',
    input: none,
    output: z.object({ stopping: z.literal(true) }),
    command: 'shutdown',
  },
  openApi: {
    method: 'GET',
    path: '/openapi.json',
    summary: 'This API as an OpenAPI 3.1 document.',
    input: none,
    output: z.looseObject({ openapi: z.string() }),
    command: { none: 'it is for programs' },
  },
} as const satisfies Record<string, Route>

/** Every route of the local API, by name: what is called through `ApiClient`. */
export const ROUTES = {
  ...NODE_ROUTES,
  ...NETWORK_ROUTES,
  ...RUN_ROUTES,
  ...OBSERVATION_ROUTES,
  ...DASHBOARD_ROUTES,
  ...TRAINING_ROUTES,
  ...BLOB_ROUTES,
  ...SERVICE_ROUTES,
} as const satisfies Record<string, Route>

/** Routes that a handler answers: all but the events. */
export type CallId = Exclude<keyof typeof ROUTES, 'events'>
