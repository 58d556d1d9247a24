/**
 * A peer that takes part in a run and misbehaves: it speaks the real protocol through a real network and has a real
 * record in the shared state, but what it answers in a round is up to the test.
 */
import { systemClock } from '../../src/clock.ts'
import { silentLogger } from '../../src/log.ts'
import { createMetrics } from '../../src/metrics.ts'
import type { Network, RpcHandler } from '../../src/net/network.ts'
import type { ShoalNode } from '../../src/node.ts'
import { seededRandom } from '../../src/random.ts'
import {
  contributionPlan,
  encodeContribution,
  type Contribution,
  type RoundKey,
} from '../../src/run/contribution.ts'
import type { Manifest } from '../../src/run/manifest.ts'
import { modelSchema } from '../../src/run/model-schema.ts'
import { decodeManifest, parseRunId } from '../../src/run/run-id.ts'
import { blankRecord, type PeerRecord } from '../../src/state/record.ts'
import { createStateService } from '../../src/state/service.ts'
import type { SharedState } from '../../src/state/shared-state.ts'
import { createMemoryRecordStore } from '../../src/store/memory.ts'

export interface Rogue {
  readonly peerId: string
  readonly network: Network
  readonly manifest: Manifest
  /** Parameters in the model. */
  readonly elements: number
  /** A contribution as a well-behaved peer would make it; all its elements have the given values. */
  contribute(
    key: RoundKey,
    values?: { pseudoGradient?: number; parameters?: Float32Array },
    header?: { weight?: number; base?: string },
  ): Promise<Contribution>
  /** Tells the others that it trains and where it is. */
  publish(outerStep: number, record?: Partial<PeerRecord>): Promise<void>
  stop(): Promise<void>
}

export interface RogueHandlers {
  /** Each answers one method of the exchange; the round that the request is about is parsed already. */
  offer: RpcHandler
  chunk: RpcHandler
  set?: RpcHandler
  snapshot?: RpcHandler
  blob?: RpcHandler
}

/** Joins `run`, which `node` takes part in, from `network`. */
export async function createRogue(
  network: Network,
  node: ShoalNode,
  run: string,
  handlers: RogueHandlers,
): Promise<Rogue> {
  await network.connect(node.status().addresses[0] ?? '')
  const bytes = await network.rpc.call(node.peerId, 'blob/get', parseRunId(run).bytes, {
    lane: 'bulk',
  })
  const manifest = decodeManifest(bytes)
  const elements = modelSchema(manifest.model).size
  const { peerId, rpc } = network
  const methods: [string, RpcHandler | undefined][] = [
    ['round/offer', handlers.offer],
    ['round/chunk', handlers.chunk],
    ['round/set', handlers.set],
    ['run/snapshot', handlers.snapshot],
    ['blob/get', handlers.blob],
  ]
  for (const [method, handler] of methods) {
    if (handler !== undefined) rpc.handle(method, handler)
  }
  const states = createStateService({
    network,
    identity: network.identity,
    records: createMemoryRecordStore(),
    clock: systemClock,
    random: seededRandom('rogue', peerId),
    logger: silentLogger,
    metrics: createMetrics(),
  })
  const state: SharedState = await states.open(run, { admins: manifest.admins })
  await state.sync(node.peerId)

  return {
    peerId,
    network,
    manifest,
    elements,
    contribute: (key, { pseudoGradient = 0, parameters } = {}, { weight = 1000, base } = {}) =>
      encodeContribution(
        {
          peer: peerId,
          run,
          key,
          schemaHash: manifest.schemaHash,
          weight,
          base: base ?? null,
          plan: contributionPlan(manifest.averaging, key.phase, [0, elements]),
          vectors: {
            pseudoGradient: new Float32Array(elements).fill(pseudoGradient),
            parameters: parameters ?? new Float32Array(elements),
          },
        },
        systemClock,
      ),
    publish: (outerStep, record = {}) =>
      state.publish({ ...blankRecord('training', outerStep), ...record }),
    async stop() {
      await states.close()
      await network.stop()
    },
  }
}
