/** What the local API tells about the network: links to peers, and how this node is connected. */
import { z } from 'zod'
import { DEADLINES } from '../../src/limits.ts'
import type { Link } from '../../src/net/network.ts'
import { peerId, type Route } from './route.ts'

export const reachabilitySchema = z.enum(['unknown', 'public', 'mapped', 'punchable', 'relay-only'])
export const natTypeSchema = z.enum([
  'unknown',
  'open',
  'full-cone',
  'restricted-cone',
  'port-restricted-cone',
  'symmetric',
  'udp-blocked',
  'web-only',
])

export const linkSchema = z.object({
  peer: z.string(),
  address: z.string(),
  transport: z.string(),
  direct: z.boolean(),
  direction: z.enum(['inbound', 'outbound']),
  rttMs: z.number().nullable(),
  ageMs: z.number(),
  bytesSent: z.number(),
  bytesReceived: z.number(),
  sentBytesPerSecond: z.number(),
  receivedBytesPerSecond: z.number(),
  history: z.array(
    z.object({
      transport: z.string(),
      direct: z.boolean(),
      openedAgoMs: z.number(),
      closedAgoMs: z.number().nullable(),
    }),
  ),
}) satisfies z.ZodType<Link>

const endpointSchema = z.object({ host: z.string(), port: z.number() })
const mappingSchema = z.enum(['independent', 'dependent'])

const diagnosisSchema = z.object({
  reachability: reachabilitySchema,
  public: z.boolean(),
  nat: z.object({
    type: natTypeSchema,
    udp: z
      .object({
        outside: endpointSchema,
        mapping: mappingSchema,
        filtering: z.enum(['independent', 'address', 'address-and-port']),
      })
      .optional(),
    tcp: z.object({ outside: endpointSchema, mapping: mappingSchema }).optional(),
  }),
  forwarding: z
    .object({
      protocol: z.enum(['pcp', 'nat-pmp', 'upnp']),
      router: z.string(),
      port: z.number(),
      outside: endpointSchema.nullable(),
    })
    .nullable(),
  ports: z.array(
    z.object({
      transport: z.string(),
      port: z.number(),
      isReached: z.boolean().nullable(),
      address: z.string().nullable(),
    }),
  ),
  reflectorPorts: z.array(z.number()),
  webRtc: z.boolean(),
  relays: z.array(z.string()),
  peers: z.object({ direct: z.number(), relayed: z.number() }),
  clock: z.object({ aheadMs: z.number(), peers: z.number() }).nullable(),
  bandwidth: z
    .object({
      peer: z.string(),
      direct: z.boolean(),
      transport: z.string(),
      uploadBytesPerSecond: z.number(),
      downloadBytesPerSecond: z.number(),
    })
    .nullable(),
  bandwidthFault: z.string().nullable(),
  advice: z.array(
    z.object({
      subject: z.string(),
      level: z.enum(['ok', 'hint', 'problem']),
      finding: z.string(),
      advice: z.string(),
    }),
  ),
})

export const NETWORK_ROUTES = {
  diagnose: {
    method: 'POST',
    path: '/v1/diagnosis',
    summary:
      'How this node is connected, measured now: NAT, ports reached by others, relays, clock, bandwidth to a peer (or to the nearest), and one sentence of advice on each.',
    input: z.strictObject({ peer: peerId.optional() }),
    output: diagnosisSchema,
    deadlineMs: 2 * DEADLINES.apiMs,
    command: 'doctor',
  },
} as const satisfies Record<string, Route>
