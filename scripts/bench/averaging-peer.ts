/**
 * One of the peers of `npm run bench -- averaging`: a node on loopback. A line of JSON asks for something, a line of JSON
 * answers. Ends with its stdin.
 */
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { nodeEncrypters } from '../../node/net/tls.ts'
import { nodeTransports } from '../../node/net/transports.ts'
import { systemClock } from '../../src/clock.ts'
import { messageOf, ShoalError } from '../../src/errors.ts'
import { createMetrics } from '../../src/metrics.ts'
import { createNetwork } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import { createNode, type ShoalNode } from '../../src/node.ts'
import { seededRandom } from '../../src/random.ts'
import { averagingSchema } from '../../src/run/manifest.ts'
import type { Engine } from '../../src/run/trainer.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../src/store/memory.ts'

const requestSchema = z.discriminatedUnion('do', [
  z.object({ do: z.literal('open'), seed: z.number(), bootstrap: z.array(z.string()) }),
  z.object({
    do: z.literal('average'),
    round: z.number(),
    elements: z.number(),
    peers: z.number(),
    groupSize: z.number(),
    codec: averagingSchema.shape.parametersCodec.unwrap(),
  }),
])
export type AveragingRequest = z.infer<typeof requestSchema>
type AverageRequest = Extract<AveragingRequest, { do: 'average' }>

export const openedSchema = z.object({ peer: z.string(), address: z.string() })
export const averagedSchema = z.object({
  /** Whose vectors are in the mean; empty when there is none. */
  peers: z.array(z.string()),
  /** First element of the mean. */
  first: z.number(),
  fault: z.string().nullable(),
  cpuSeconds: z.number(),
})

let node: ShoalNode | undefined
let given = new Float32Array(0)

async function answer(request: AveragingRequest): Promise<object> {
  if (request.do === 'average') return average(request)
  const identity = await createIdentity()
  const records = createMemoryRecordStore()
  const metrics = createMetrics()
  const network = await createNetwork({
    identity,
    records,
    metrics,
    transports: nodeTransports(),
    connectionEncrypters: nodeEncrypters(),
    listen: ['/ip4/127.0.0.1/tcp/0'],
    bootstrap: request.bootstrap,
    random: seededRandom('bench averaging', request.seed),
    clock: systemClock,
  })
  const blobs = createMemoryBlobStore()
  node = await createNode({ network, records, blobs, metrics, engine: noEngine })
  // As a peer's first weights would be: other numbers in each of them.
  const random = seededRandom('bench averaging vector', request.seed)
  given = Float32Array.from({ length: 1 << 16 }, () => random.normal())
  return { peer: node.peerId, address: node.status().addresses[0] ?? '' }
}

/** Nothing is trained here. */
const noEngine: Engine = {
  backend: 'none',
  open: () => Promise.reject(new ShoalError('engine_failed', 'the bench trains nothing')),
  close: async () => {},
}

async function average({ elements, peers, groupSize, codec, round }: AverageRequest) {
  const parameters = new Float32Array(elements)
  for (let at = 0; at < elements; at += given.length) {
    parameters.set(given.subarray(0, elements - at), at)
  }
  const before = process.cpuUsage()
  const outcome = { peers: Array<string>(), first: 0, fault: null }
  const cpuSeconds = (): number => {
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1e6
  }
  try {
    if (node === undefined) throw new ShoalError('internal', 'the peer is not open')
    const mean = await node.averaging.average(
      {
        group: 'bench',
        round,
        schemaHash: 'a'.repeat(64),
        parameters,
        weight: 1,
        minPeers: peers,
        groupSize,
        waitMs: 60_000,
        codec,
      },
      new AbortController().signal,
    )
    const [first = 0] = mean.parameters
    return { ...outcome, peers: mean.peers, first, cpuSeconds: cpuSeconds() }
  } catch (thrown) {
    return { ...outcome, fault: messageOf(thrown), cpuSeconds: cpuSeconds() }
  }
}

if (import.meta.main) {
  for await (const line of createInterface({ input: process.stdin })) {
    const reply = await answer(requestSchema.parse(JSON.parse(line)))
    process.stdout.write(`${JSON.stringify(reply)}\n`)
  }
  process.exit(0)
}
