import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { LIMITS } from '../../../src/limits.ts'
import { seededRandom } from '../../../src/random.ts'
import { contributionBytes, decodePart } from '../../../src/run/contribution.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import {
  applyRound,
  contributingMoves,
  contributionOf,
  initialOuterState,
  takeBack,
} from '../../../src/run/outer-update.ts'
import { createRunStore, type StoredState } from '../../../src/run/run-store.ts'
import { createBlobReferences } from '../../../src/store/blob-references.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../../src/store/memory.ts'
import { norm, subtract } from '../../../src/tensor/vector.ts'
import { smallManifest } from './small-manifest.ts'

/** One whole slice and a bit, so that slices are crossed. */
const ELEMENTS = LIMITS.sliceElements + 100

function vector(...name: (string | number)[]): Float32Array {
  const random = seededRandom(...name)
  return Float32Array.from({ length: ELEMENTS }, () => random.normal() * 0.02)
}

const sparse = averagingSchema.parse({
  rule: 'diloco',
  pseudoGradientCodec: 'sparseloco',
  momentum: 0,
  learningRate: 1,
})
const identity = { run: 'run', outerStep: 0, schemaHash: 'a'.repeat(64), weight: 1 }

describe('the residual of a peer', () => {
  test('is there when the codec needs it, and starts at zero', () => {
    const parameters = vector('parameters')
    const outer = initialOuterState(sparse, parameters)
    expect(outer.residual).toEqual(new Float32Array(ELEMENTS))
    expect(contributingMoves({ averaging: sparse, outer })).toBe(true)
    const dense = averagingSchema.parse({})
    const plain = initialOuterState(dense, parameters)
    expect(plain.residual).toBeUndefined()
    expect(contributingMoves({ averaging: dense, outer: plain })).toBe(false)
  })

  test('holds what a contribution leaves out, and sends it later', async () => {
    const outer = initialOuterState(sparse, vector('parameters'))
    const pseudoGradient = vector('gradient')
    const update = { ...identity, averaging: sparse, outer, peer: 'a' }
    const first = await contributionOf({ ...update, pseudoGradient }, systemClock)
    expect(contributionBytes(first.plan) / ELEMENTS).toBeLessThan(0.03)
    const sent = await decodePart(first, 'pseudoGradient', systemClock)
    expect(outer.residual).toEqual(subtract(pseudoGradient, sent))
    // Nothing new: the residual alone is sent next, decayed by 0.95.
    const before = norm(outer.residual!)
    const nothing = new Float32Array(ELEMENTS)
    const second = await contributionOf({ ...update, pseudoGradient: nothing }, systemClock)
    expect(norm(await decodePart(second, 'pseudoGradient', systemClock))).toBeGreaterThan(0)
    expect(norm(outer.residual!)).toBeLessThan(0.95 * before)
  })

  test('takes a contribution back that the group agreed to leave out', async () => {
    const outer = initialOuterState(sparse, vector('parameters'))
    const pseudoGradient = vector('gradient')
    const own = await contributionOf(
      { ...identity, averaging: sparse, outer, peer: 'a', pseudoGradient },
      systemClock,
    )
    expect(norm(subtract(outer.residual!, pseudoGradient))).toBeGreaterThan(0.01)
    await takeBack(outer, own, systemClock)
    expect(norm(subtract(outer.residual!, pseudoGradient))).toBeLessThan(1e-6)
  })
})

describe('a group with a sparse codec', () => {
  test('takes the mean over all its members, the absent counting as 0, with equal bits', async () => {
    const shared = vector('parameters')
    const peers = ['a', 'b', 'c']
    const contributions = await Promise.all(
      peers.map((peer) =>
        contributionOf(
          {
            ...identity,
            averaging: sparse,
            outer: initialOuterState(sparse, shared.slice()),
            peer,
            pseudoGradient: vector('gradient', peer),
          },
          systemClock,
        ),
      ),
    )
    const sent = await Promise.all(
      contributions.map((each) => decodePart(each, 'pseudoGradient', systemClock)),
    )
    const results = await Promise.all(
      peers.map(async (self) => {
        const outer = initialOuterState(sparse, shared.slice())
        const swarm = peers.length
        await applyRound({ averaging: sparse, outer, self, contributions, swarm }, systemClock)
        return outer.parameters
      }),
    )
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
    // SparseLoCo's 1/R sum, not the mean over those that sent an element.
    const lonely = sent[0]!.findIndex((v, i) => v !== 0 && sent[1]![i] === 0 && sent[2]![i] === 0)
    expect(lonely).toBeGreaterThanOrEqual(0)
    const expected = Math.fround(shared[lonely]! - Math.fround(sent[0]![lonely]! / 3))
    expect(results[0]![lonely]).toBeCloseTo(expected, 7)
    const untouched = sent[0]!.findIndex((_, i) => sent.every((each) => each[i] === 0))
    expect(results[0]![untouched]).toBe(shared[untouched])
  })
})

describe('adapt, then combine', () => {
  const averaging = averagingSchema.parse({ rule: 'adapt-then-combine' })

  test('sends one vector of 1.031 bytes per parameter, which is the result of the own step', async () => {
    const before = vector('parameters')
    const outer = initialOuterState(averaging, before.slice())
    expect(contributingMoves({ averaging, outer })).toBe(true)
    const pseudoGradient = vector('gradient')
    const own = await contributionOf(
      { ...identity, averaging, outer, peer: 'a', pseudoGradient },
      systemClock,
    )
    expect(contributionBytes(own.plan) / ELEMENTS).toBeCloseTo(1.03125, 5)
    expect(own.plan.every(({ part }) => part === 'parameters')).toBe(true)
    // y = phi - eta * (1 + mu) * pg when the momentum was zero.
    const y = before.map((phi, i) => phi - 0.7 * 1.8 * pseudoGradient[i]!)
    expect(norm(subtract(outer.parameters, y)) / norm(y)).toBeLessThan(1e-6)
    expect(outer.momentum).toEqual(pseudoGradient)
    const sent = await decodePart(own, 'parameters', systemClock)
    expect(norm(subtract(sent, y)) / norm(y)).toBeLessThan(0.012)
  })

  test('ends at the mean of what the group sent, and a lone peer keeps its exact result', async () => {
    const outers = ['a', 'b', 'c'].map((peer) => ({
      peer,
      outer: initialOuterState(averaging, vector('parameters', peer)),
    }))
    const contributions = await Promise.all(
      outers.map(({ peer, outer }) =>
        contributionOf(
          { ...identity, averaging, outer, peer, pseudoGradient: vector('gradient', peer) },
          systemClock,
        ),
      ),
    )
    const exact = outers[0]!.outer.parameters.slice()
    const sent = await Promise.all(
      contributions.map((each) => decodePart(each, 'parameters', systemClock)),
    )
    const { outer } = outers[0]!
    const alone = { ...outer, parameters: outer.parameters.slice() }
    const round = { averaging, self: 'a', swarm: 3 }
    const own = contributions.slice(0, 1)
    expect(await applyRound({ ...round, outer: alone, contributions: own }, systemClock)).toBeNull()
    expect(alone.parameters).toEqual(exact)
    const estimate = await applyRound({ ...round, outer, contributions }, systemClock)
    const mean = exact.map((v, i) => (v + sent[1]![i]! + sent[2]![i]!) / 3)
    expect(norm(subtract(outer.parameters, mean)) / norm(mean)).toBeLessThan(1e-6)
    expect(estimate).toBeGreaterThan(0.5)
  })
})

describe('the store of a run', () => {
  const state: Omit<StoredState, 'parameters' | 'momentum' | 'optimizer'> = {
    version: 1,
    outerStep: 3,
    tokens: 1,
    bytesSent: 0,
    bytesReceived: 0,
    rounds: { averaged: 1, solo: 1, stale: 1 },
    lossStart: null,
    loss: null,
    validationLoss: null,
    checkpoints: [],
    finished: false,
    round: null,
    consensusDistance: null,
  }
  async function stored(residual: Float32Array | undefined) {
    const records = createMemoryRecordStore()
    const blobs = createMemoryBlobStore()
    const open = () => {
      const references = createBlobReferences(blobs)
      const deps = { records, blobs, references, clock: systemClock }
      return { references, store: createRunStore('run', smallManifest(), deps) }
    }
    const { store } = open()
    const vectors = { parameters: vector('p'), momentum: vector('m'), optimizer: new Uint8Array(8) }
    await store.commit({ ...state, ...(await store.storeVectors({ ...vectors, residual })) })
    // Another life of the node: a sweep deletes what nobody keeps.
    const again = open()
    await again.store.retainStored()
    await again.references.sweep()
    const found = await again.store.load()
    return { found, loaded: await again.store.loadVectors(found!, ELEMENTS) }
  }

  test('brings the residual back with its bits', async () => {
    const { found, loaded } = await stored(vector('residual'))
    expect(found?.residual?.bytes).toBe(4 * ELEMENTS)
    expect(loaded.residual).toEqual(vector('residual'))
    expect(loaded.parameters).toEqual(vector('p'))
  })

  test('holds none when there is none', async () => {
    const { found, loaded } = await stored(undefined)
    expect(found).toBeDefined()
    expect(Object.hasOwn(found!, 'residual')).toBe(false)
    expect(loaded.residual).toBeUndefined()
  })
})
