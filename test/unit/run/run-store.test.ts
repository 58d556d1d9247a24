/** What a run keeps: whole at every moment at which the machine may stop, the disk be full, or another run let go. */
import { expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { ShoalError } from '../../../src/errors.ts'
import { seededRandom, type Random } from '../../../src/random.ts'
import {
  createRunStore,
  storedRuns,
  type RunStore,
  type RunVectors,
  type StoredState,
} from '../../../src/run/run-store.ts'
import { createBlobReferences, type BlobReferences } from '../../../src/store/blob-references.ts'
import type { BlobStore } from '../../../src/store/blob-store.ts'
import { cidOf } from '../../../src/store/content.ts'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { smallManifest } from './small-manifest.ts'

const RUN = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
const OTHER_RUN = 'bafyreibvjvcv745gig4mvqs4hctx4zfkono4rjejm2ta6gtyzkqxfjeily'
const ELEMENTS = 10

interface Stores {
  records: RecordStore
  blobs: BlobStore
}

function memoryStores(): Stores {
  return { records: createMemoryRecordStore(), blobs: createMemoryBlobStore() }
}

function openStore({ records, blobs }: Stores, run = RUN): RunStore {
  return storeBeside(records, createBlobReferences(blobs), run)
}

function storeBeside(records: RecordStore, references: BlobReferences, run: string): RunStore {
  const { blobs } = references
  return createRunStore(run, smallManifest(), { records, blobs, references, clock: systemClock })
}

function vectorsOf(outerStep: number): RunVectors {
  const parameters = new Float32Array(ELEMENTS)
  parameters[ELEMENTS - 1] = outerStep
  const residual = new Float32Array(ELEMENTS).fill(outerStep)
  return {
    parameters,
    momentum: new Float32Array(ELEMENTS),
    residual,
    optimizer: Uint8Array.of(1, 2, outerStep),
  }
}

async function commit(store: RunStore, outerStep: number): Promise<void> {
  const stored = await store.storeVectors(vectorsOf(outerStep))
  const state: StoredState = {
    version: 1,
    outerStep,
    tokens: 10 * outerStep,
    bytesSent: 0,
    bytesReceived: 0,
    rounds: { averaged: 0, solo: outerStep, stale: 0 },
    lossStart: 5,
    loss: 4,
    validationLoss: null,
    checkpoints: [],
    finished: false,
    round: null,
    consensusDistance: null,
    ...stored,
  }
  await store.commit(state)
}

/** The state of which the store says that it is whole, read again from scratch; undefined when there is none. */
async function stateAfterRestart(stores: Stores): Promise<number | undefined> {
  const references = createBlobReferences(stores.blobs)
  const store = storeBeside(stores.records, references, RUN)
  await store.retainStored()
  await references.sweep()
  const state = await store.load()
  if (state === undefined) return undefined
  const { parameters, momentum, residual, optimizer } = await store.loadVectors(state, ELEMENTS)
  expect({ parameters, momentum, residual, optimizer }).toEqual(vectorsOf(state.outerStep))
  expect(state.tokens).toBe(10 * state.outerStep)
  return state.outerStep
}

/** The store as another process leaves it that is gone at operation `last`, before it takes effect or after. */
function mortal({ records, blobs }: Stores, last: number, takesEffect: boolean): Stores {
  let operations = 0
  const step = async <T>(work: () => Promise<T>): Promise<T> => {
    const isLast = operations++ === last
    if (operations - 1 < last || (isLast && takesEffect)) {
      const done = await work()
      if (!isLast) return done
    }
    throw new Error('killed')
  }
  return {
    records: {
      ...records,
      put: (key, value) => step(() => records.put(key, value)),
      batch: (batch) => step(() => records.batch(batch)),
    },
    blobs: {
      ...blobs,
      put: (cid, bytes) => step(() => blobs.put(cid, bytes)),
      delete: (cid) => step(() => blobs.delete(cid)),
    },
  }
}

test('after kill -9 at any write or deletion the state is one that was committed, whole', async () => {
  const reached = new Set<number | undefined>()
  for (const takesEffect of [false, true]) {
    for (let last = 0; ; last++) {
      const disk = memoryStores()
      const store = openStore(mortal(disk, last, takesEffect))
      let committed: number | undefined
      const life = async (): Promise<void> => {
        for (const outerStep of [1, 2, 3]) {
          await commit(store, outerStep)
          committed = outerStep
        }
      }
      const isOver = await life().then(
        () => true,
        () => false,
      )
      const state = await stateAfterRestart(disk)
      reached.add(state)
      // What has returned is there; what had not may be, as a whole.
      expect([committed, (committed ?? 0) + 1]).toContain(state)
      if (isOver) break
    }
  }
  expect(reached).toEqual(new Set([undefined, 1, 2, 3]))
})

test('after kill -9 while a run is left it is there as before, or gone without a trace', async () => {
  const outcomes = new Set<string>()
  for (const takesEffect of [false, true]) {
    for (let last = 0; ; last++) {
      const disk = memoryStores()
      const before = openStore(disk)
      await before.setMembership({ version: 1, text: null, trainer: 'embedded' })
      await commit(before, 1)
      const store = openStore(mortal(disk, last, takesEffect))
      await store.retainStored()
      const isOver = await store.forget().then(
        () => true,
        () => false,
      )
      const runs = await storedRuns(disk.records)
      if (runs.length > 0) expect(await stateAfterRestart(disk)).toBe(1)
      else {
        expect(await disk.records.list('')).toEqual([])
        await createBlobReferences(disk.blobs).sweep()
        expect(await namesIn(disk.blobs)).toEqual([])
      }
      outcomes.add(runs.length > 0 ? 'there' : 'gone')
      if (isOver) break
    }
  }
  expect(outcomes).toEqual(new Set(['there', 'gone']))
})

test('a full disk at any write leaves the state before, and the next commit is whole again', async () => {
  for (let full = 0; ; full++) {
    const disk = memoryStores()
    let writes = 0
    const write = async (work: () => Promise<void>): Promise<void> => {
      if (writes++ === full) throw new ShoalError('storage_failed', 'the disk is full')
      await work()
    }
    const { records, blobs } = disk
    const references = createBlobReferences({
      ...blobs,
      put: (cid, bytes) => write(() => blobs.put(cid, bytes)),
    })
    const limited = {
      ...records,
      put: (key: string, value: Uint8Array) => write(() => records.put(key, value)),
    }
    const store = storeBeside(limited, references, RUN)
    let failures = 0
    for (const outerStep of [1, 2, 3]) {
      const before = (await store.load())?.outerStep
      try {
        await commit(store, outerStep)
      } catch {
        failures++
        expect((await store.load())?.outerStep).toBe(before)
        await commit(store, outerStep)
      }
    }
    expect(await stateAfterRestart(disk)).toBe(3)
    if (failures === 0) break
    // Nothing of the failed attempt has been left behind.
    const whole = memoryStores()
    await commit(openStore(whole), 3)
    expect(await namesIn(blobs)).toEqual(await namesIn(whole.blobs))
  }
})

async function namesIn(blobs: BlobStore): Promise<string[]> {
  const names: string[] = []
  for await (const cid of blobs.list()) names.push(cid.toString())
  return names.sort()
}

/** A store whose operations take a while, of random length. */
function slow(blobs: BlobStore, random: Random): BlobStore {
  const later = async (): Promise<void> => {
    for (let turns = random.integer(6); turns > 0; turns--) await new Promise(setImmediate)
  }
  return {
    ...blobs,
    async has(cid) {
      await later()
      const found = await blobs.has(cid)
      await later()
      return found
    },
    async put(cid, bytes) {
      await later()
      await blobs.put(cid, bytes)
    },
    async delete(cid) {
      await later()
      await blobs.delete(cid)
    },
  }
}

test('a blob that one run finds present stays, whatever another lets go of meanwhile', async () => {
  const random = seededRandom('runs that share blobs')
  const blobs = createMemoryBlobStore()
  const references = createBlobReferences(slow(blobs, random))
  const records = createMemoryRecordStore()
  const first = storeBeside(records, references, RUN)
  let committed = 0
  const ending = new AbortController()
  /** Commits states that the other run has too, and forgets them all. */
  const disturb = async (): Promise<void> => {
    while (!ending.signal.aborted) {
      const store = storeBeside(records, references, OTHER_RUN)
      for (let times = random.integer(3); times >= 0; times--)
        await commit(store, 1 + random.integer(3))
      await store.forget()
    }
  }
  const disturbance = disturb()
  for (let times = 0; times < 100; times++) {
    committed = 1 + random.integer(3)
    await commit(first, committed)
    const state = await first.load()
    expect(state?.outerStep).toBe(committed)
    const vectors = await first.loadVectors(state!, ELEMENTS)
    expect(vectors.parameters.at(-1)).toBe(committed)
  }
  ending.abort()
  await disturbance
  expect(await stateAfterRestart({ records, blobs })).toBe(committed)
})

test('every flipped bit of what is stored is noticed', async () => {
  const { records, blobs } = memoryStores()
  const store = openStore({ records, blobs })
  await store.setMembership({ version: 1, text: null, trainer: 'embedded' })
  await commit(store, 1)
  const random = seededRandom('flips')
  for (const what of ['state', 'membership']) {
    const key = `run/${RUN}/${what}`
    const whole = (await records.get(key))!
    const read = (): Promise<unknown> => (what === 'state' ? store.load() : store.membership())
    for (let bit = 0; bit < whole.length * 8; bit += 1 + random.integer(16)) {
      const flipped = whole.slice()
      flipped[bit >> 3]! ^= 1 << (bit & 7)
      await records.put(key, flipped)
      await expect(read()).rejects.toMatchObject({ code: 'state_corrupt' })
    }
    for (const length of [0, 20, 32, whole.length - 1]) {
      await records.put(key, whole.subarray(0, length))
      await expect(read()).rejects.toMatchObject({ code: 'state_corrupt' })
    }
    await records.put(key, whole)
    expect(await read()).toBeDefined()
  }
})

test('holds the blobs of its newest state and what is kept beside it, and no others', async () => {
  const store = openStore(memoryStores())
  const chunksOf = async (): Promise<string[]> => (await store.load())?.parameters.chunks ?? []
  expect(store.holds(RUN)).toBe(true)
  expect(store.holds(OTHER_RUN)).toBe(false)
  await commit(store, 1)
  const [first = ''] = await chunksOf()
  await commit(store, 2)
  const [second = ''] = await chunksOf()
  expect([store.holds(first), store.holds(second)]).toEqual([false, true])
  const release = store.retain([first])
  expect(store.holds(first)).toBe(true)
  await release()
  expect(store.holds(first)).toBe(false)
  await store.forget()
  expect([store.holds(RUN), store.holds(second)]).toEqual([false, false])
})

test('what is put into a pinned store outlives commits, until it is released', async () => {
  const disk = memoryStores()
  const store = openStore(disk)
  const pinned = store.pin()
  const put = async (text: string): Promise<string> => {
    const bytes = new TextEncoder().encode(text)
    const cid = await cidOf(bytes, 'raw')
    await pinned.blobs.put(cid, bytes)
    return cid.toString()
  }
  const made: string[] = []
  for (let step = 1; step < 4; step++) {
    made.push(await put(`chunk ${step}`))
    await commit(store, step)
  }
  const names = async (): Promise<string[]> => {
    const stored = await namesIn(disk.blobs)
    return made.filter((name) => stored.includes(name))
  }
  expect(await names()).toEqual(made)
  expect(made.map((name) => store.holds(name))).toEqual([true, true, true])
  await pinned.release()
  expect(await names()).toEqual([])
  expect(store.holds(made[0] ?? '')).toBe(false)
})
