import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { systemClock } from '../../src/clock.ts'
import { codecs, type CodecId } from '../../src/codec/codec.ts'
import { LIMITS } from '../../src/limits.ts'
import type { RunSpecInput } from '../../src/run/manifest.ts'
import type { RunView } from '../../src/run/view.ts'
import { storeVector } from '../../src/run/vector-blobs.ts'
import { decodeCbor, encodeCbor } from '../../src/store/content.ts'
import { createMemoryBlobStore } from '../../src/store/memory.ts'
import {
  createSwarm,
  isFinished,
  memoryStores,
  realText,
  tinySpec,
  waitForRun,
  type Stores,
} from './swarm.ts'

const text = await realText()
const sparse = { pseudoGradientCodec: 'topk-1024-int4' } as const

/** What stands in a record of a run behind its sha-256. */
const unsealed = (record: Uint8Array | undefined): unknown =>
  decodeCbor(record?.subarray(32) ?? new Uint8Array(), LIMITS.manifestBytes)

async function sealed(value: unknown): Promise<Uint8Array> {
  const bytes = new Uint8Array(encodeCbor(value))
  const digest = await crypto.subtle.digest('SHA-256', bytes)
  return new Uint8Array([...new Uint8Array(digest), ...bytes])
}

describe('a peer that starts again in a run with error feedback', () => {
  const stateSchema = z.looseObject({ residual: z.looseObject({ bytes: z.number() }) })
  const stateKey = (id: string): string => `run/${id}/state`

  async function storedState({ records }: Stores, id: string) {
    return stateSchema.parse(unsealed(await records.get(stateKey(id))))
  }

  /** Trains alone to the end, over a restart after outer step 3 when asked; returns the last parameters' hash. */
  async function train(betweenLives?: (stores: Stores, id: string) => Promise<void>) {
    const swarm = await createSwarm(0, 'residual')
    try {
      const stores = memoryStores()
      let node = await swarm.add(0, stores)
      const spec = { outerSteps: 8, innerSteps: 40, averaging: sparse, seed: 'residual' }
      const { id } = await node.createRun(tinySpec(spec), text)
      if (betweenLives !== undefined) {
        await waitForRun(node, id, ({ outerStep }) => outerStep >= 3)
        await node.stop()
        await betweenLives(stores, id)
        node = await swarm.add(0, stores)
        expect(node.run(id).outerStep).toBeLessThan(8)
      }
      return (await waitForRun(node, id, isFinished)).parametersHash
    } finally {
      await swarm.stop()
    }
  }

  test('ends with the bits of one that never stopped, thanks to its residual', async () => {
    const uninterrupted = await train()
    const restarted = await train(async (stores, id) => {
      expect((await storedState(stores, id)).residual.bytes).toBeGreaterThan(0)
    })
    expect(restarted).toBe(uninterrupted)
    const robbed = await train(async (stores, id) => {
      const { residual: _, ...state } = await storedState(stores, id)
      await stores.records.put(stateKey(id), await sealed(state))
    })
    expect(robbed).not.toBe(uninterrupted)
  })
})

test('a peer that fell behind starts with an empty residual when it takes over the state of others', async () => {
  const swarm = await createSwarm(2, 'behind')
  try {
    const [first, second] = swarm.nodes
    if (!first || !second) throw new Error('two nodes')
    const stores = memoryStores()
    const committed: { outerStep: number; residual: { chunks: string[] } }[] = []
    const schema = z.looseObject({
      outerStep: z.number(),
      residual: z.looseObject({ chunks: z.array(z.string()) }),
    })
    const records: Stores['records'] = {
      ...stores.records,
      async put(key, value) {
        if (key.endsWith('/state')) {
          committed.push(schema.parse(unsealed(value)))
        }
        await stores.records.put(key, value)
      },
    }
    const absent = await swarm.add(2, { ...stores, records })
    const limits = { minPeers: 3, startTimeoutMs: 30_000, roundTimeoutMs: 4_000 }
    const spec = tinySpec({ outerSteps: 100, innerSteps: 8, averaging: sparse, limits })
    const { id } = await first.createRun(spec, text)
    for (const node of [second, absent]) await node.joinRun(id)
    await waitForRun(absent, id, ({ outerStep }) => outerStep >= 2)
    await absent.stop()
    const last = committed.at(-1)
    // Further than single rounds could still be had.
    await waitForRun(first, id, ({ outerStep }) => outerStep >= (last?.outerStep ?? 0) + 40)
    const again = await swarm.add(2, { ...stores, records })
    await Promise.all([first, second, again].map((node) => waitForRun(node, id, isFinished)))
    const jump = committed.findIndex(
      ({ outerStep }, index) => index > 0 && outerStep > committed[index - 1]!.outerStep + 1,
    )
    expect(jump).toBeGreaterThan(0)
    const elements = again.run(id).parameters
    const zeros = await storeVector(
      new Float32Array(elements),
      createMemoryBlobStore(),
      systemClock,
    )
    expect(last?.residual.chunks).not.toEqual(zeros.chunks)
    expect(committed[jump]?.residual.chunks).toEqual(zeros.chunks)
  } finally {
    await swarm.stop()
  }
})

describe('a swarm of 4', () => {
  async function train(averaging: RunSpecInput['averaging']): Promise<RunView[]> {
    const swarm = await createSwarm(4, 'codecs')
    try {
      const [first, ...others] = swarm.nodes
      if (first === undefined) throw new Error('a swarm has nodes')
      const limits = { minPeers: 4, startTimeoutMs: 60_000, roundTimeoutMs: 60_000 }
      const spec = tinySpec({ outerSteps: 6, innerSteps: 10, averaging, limits })
      const { id } = await first.createRun(spec, text)
      await Promise.all(others.map((node) => node.joinRun(id)))
      return await Promise.all(swarm.nodes.map((node) => waitForRun(node, id, isFinished)))
    } finally {
      await swarm.stop()
    }
  }

  const bytesOf = (codec: CodecId, { parameters }: RunView): number =>
    codecs[codec].encodedBytes(parameters)

  test('agrees bit by bit under a sparse codec with error feedback', async () => {
    const views = await train(sparse)
    for (const view of views) {
      expect(view.rounds).toEqual({ averaged: 6, solo: 0, stale: 0 })
      expect(view.validationLoss).toBeLessThan(view.lossStart ?? 0)
      // Six messages from each of three others, and the final merge.
      expect(view.bytesReceived).toBe(
        3 * 6 * bytesOf('topk-1024-int4', view) + 3 * bytesOf('int8-128', view),
      )
    }
    expect(new Set(views.map((view) => view.parametersHash)).size).toBe(1)
  })

  test('trains by gossip with one vector per message', async () => {
    const views = await train({ rule: 'adapt-then-combine', groupSize: 2 })
    for (const view of views) {
      expect(view.rule).toBe('adapt-then-combine')
      expect(view.rounds).toEqual({ averaged: 6, solo: 0, stale: 0 })
      expect(view.round?.partners).toHaveLength(1)
      expect(view.validationLoss).toBeLessThan(view.lossStart ?? 0)
      expect(view.consensusDistance).toBeGreaterThan(0)
      // Six messages from one partner each, then one from each of three.
      expect(view.bytesReceived).toBe((6 + 3) * bytesOf('int8-128', view))
    }
    expect(new Set(views.map((view) => view.checkpoints.at(-1)?.cid)).size).toBe(1)
  })
})
