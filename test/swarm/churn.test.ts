import { describe, expect, test } from 'vitest'
import type { ShoalNode } from '../../src/node.ts'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import { decodeOptimizerState } from '../../src/optim/optimizer-state.ts'
import { createRunStore, type RunVectors } from '../../src/run/run-store.ts'
import type { RoundView, RunView } from '../../src/run/view.ts'
import { createBlobReferences } from '../../src/store/blob-references.ts'
import { createMemoryRecordStore } from '../../src/store/memory.ts'
import { createSlowEngine } from './slow-engine.ts'
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
const patient = { startTimeoutMs: 30_000, roundTimeoutMs: 4_000, checkpointEvery: 2 }

/** The rounds from now on in which a node has asked another in vain. */
function waitsFor(node: ShoalNode, gone: ShoalNode): RoundView[] {
  const rounds: RoundView[] = []
  node.onEvent((event) => {
    if (event.type !== 'outer_step') return
    const { round } = event
    if (round.reasons.some((reason) => reason.startsWith(gone.peerId.slice(-8)))) rounds.push(round)
  })
  return rounds
}

/** What a node has committed first. */
async function firstState(
  node: ShoalNode,
  id: string,
  { states, blobs }: { states: readonly Uint8Array[]; blobs: Stores['blobs'] },
): Promise<RunVectors> {
  const records = createMemoryRecordStore()
  await records.put(`run/${id}/state`, states[0] ?? new Uint8Array())
  const references = createBlobReferences(blobs)
  const deps = { records, blobs, references, clock: systemClock }
  const store = createRunStore(id, node.manifest(id), deps)
  const state = await store.load()
  if (state === undefined) throw new Error('nothing is committed')
  return store.loadVectors(state, node.run(id).parameters)
}

/** The round that a node ends next. */
function nextRound(node: ShoalNode): Promise<RoundView> {
  return new Promise((resolve) => {
    const forget = node.onEvent((event) => {
      if (event.type !== 'outer_step') return
      forget()
      resolve(event.round)
    })
  })
}

/** Until all have the same newest checkpoint: peers that merged apart find together afterwards. */
async function agreedCheckpoint(nodes: readonly ShoalNode[], id: string): Promise<void> {
  await expect
    .poll(() => new Set(nodes.map((node) => node.run(id).checkpoints.at(-1)?.cid)).size, {
      timeout: 30_000,
    })
    .toBe(1)
}

describe('churn', () => {
  test('a peer that is gone costs its partners one deadline at most, and the others finish together', async () => {
    const swarm = await createSwarm(4, 'gone')
    try {
      const [first, second, third, victim] = swarm.nodes
      if (!first || !second || !third || !victim) throw new Error('four nodes')
      const { id } = await first.createRun(
        tinySpec({ outerSteps: 12, innerSteps: 20, limits: { ...patient, minPeers: 4 } }),
        text,
      )
      for (const node of [second, third, victim]) await node.joinRun(id)
      await waitForRun(victim, id, ({ outerStep }) => outerStep >= 2)
      await victim.stop()
      const survivors = [first, second, third]
      const waits = survivors.map((node) => waitsFor(node, victim))
      const views = await Promise.all(survivors.map((node) => waitForRun(node, id, isFinished)))
      for (const view of views) {
        expect(view.outerStep).toBe(12)
        expect(view.rounds.averaged).toBeGreaterThan(0)
      }
      // News of it may still come once, from one who had heard it later.
      for (const rounds of waits) expect(rounds.length).toBeLessThanOrEqual(2)
      await agreedCheckpoint(survivors, id)
    } finally {
      await swarm.stop()
    }
  })

  test('a peer that goes in the middle of an outer step is not waited for in its round', async () => {
    const swarm = await createSwarm(0, 'known to be gone')
    const engine = await createEngine({ backend: 'native', threads: 1 })
    try {
      // An outer step takes a second.
      for (const index of [0, 1, 2, 3])
        await swarm.add(index, memoryStores(), createSlowEngine(engine, 50))
      const [first, ...others] = swarm.nodes
      const victim = others.at(-1)
      if (!first || !victim) throw new Error('four nodes')
      const { id } = await first.createRun(
        tinySpec({ outerSteps: 10_000, innerSteps: 20, limits: { ...patient, minPeers: 4 } }),
        text,
      )
      for (const node of others) await node.joinRun(id)
      const isAmid = ({ outerStep, innerStep }: RunView): boolean =>
        outerStep >= 2 && innerStep >= 4 && innerStep <= 12
      await waitForRun(victim, id, isAmid)
      const survivors = swarm.nodes.filter((node) => node !== victim)
      const waits = survivors.map((node) => waitsFor(node, victim))
      const rounds = await Promise.all([...survivors.map((node) => nextRound(node)), victim.stop()])
      // Three are left, who are one group.
      const [firstRound] = rounds
      expect(firstRound?.partners.toSorted()).toEqual(
        others
          .filter((node) => node !== victim)
          .map(({ peerId }) => peerId)
          .toSorted(),
      )
      expect(waits).toEqual([[], [], []])
    } finally {
      await swarm.stop()
      await engine.close()
    }
  })

  test.each(['gossip-diloco', 'diloco'] as const)(
    'a late joiner catches up and takes part (%s)',
    async (rule) => {
      const swarm = await createSwarm(3, `late ${rule}`)
      try {
        const [first, second] = swarm.nodes
        const late = swarm.nodes[2]
        if (!first || !second || !late) throw new Error('three nodes')
        const spec = tinySpec({
          outerSteps: 10_000,
          innerSteps: 40,
          averaging: { rule },
          limits: { ...patient, minPeers: 2 },
        })
        const { id } = await first.createRun(spec, text)
        await second.joinRun(id)
        await waitForRun(first, id, ({ outerStep }) => outerStep >= 3)
        await late.joinRun(id)
        const joined = await waitForRun(late, id, ({ rounds }) => rounds.averaged > 5)
        // It came in where the others were.
        const { averaged, solo, stale } = joined.rounds
        expect(averaged + solo + stale).toBeLessThanOrEqual(joined.outerStep - 3)
        for (const node of [first, second]) {
          await waitForRun(node, id, ({ round }) => round?.partners.includes(late.peerId) === true)
        }
      } finally {
        await swarm.stop()
      }
    },
  )

  test('a late joiner knows from its first step on how large gradients are', async () => {
    const swarm = await createSwarm(1, 'moments')
    try {
      const [donor] = swarm.nodes
      if (!donor) throw new Error('a node')
      const { id } = await donor.createRun(tinySpec({ outerSteps: 10_000 }), text)
      await waitForRun(donor, id, ({ outerStep }) => outerStep >= 3)
      const disk = memoryStores()
      const states: Uint8Array[] = []
      const put: Stores['records']['put'] = async (key, value) => {
        if (key === `run/${id}/state`) states.push(value)
        await disk.records.put(key, value)
      }
      const keeping = { ...disk.blobs, delete: async () => {} }
      const late = await swarm.add(1, { records: { ...disk.records, put }, blobs: keeping })
      await late.joinRun(id)
      await waitForRun(late, id, ({ status }) => status === 'training')
      // Before it has done a step.
      const state = await firstState(late, id, { states, blobs: keeping })
      const { schema } = await late.parameters(id, AbortSignal.timeout(10_000))
      const moments = {
        step: 0,
        firstMoment: new Float32Array(schema.size),
        secondMoment: new Float32Array(schema.size),
      }
      decodeOptimizerState(state.optimizer, moments, schema)
      expect(moments.step).toBeGreaterThan(0)
      expect(Math.max(...moments.secondMoment)).toBeGreaterThan(0)
      expect(Math.max(...moments.firstMoment.map(Math.abs))).toBe(0)
    } finally {
      await swarm.stop()
    }
  })

  test('a node that stops goes on from its last commit when it starts again', async () => {
    const swarm = await createSwarm(1, 'again')
    try {
      const stores = memoryStores()
      const [other] = swarm.nodes
      const node = await swarm.add(1, stores)
      if (!other) throw new Error('a node')
      const { id } = await node.createRun(
        tinySpec({ outerSteps: 14, innerSteps: 30, limits: { ...patient, minPeers: 2 } }),
        text,
      )
      await other.joinRun(id)
      await waitForRun(node, id, ({ outerStep }) => outerStep >= 3)
      await node.stop()
      const again = await swarm.add(1, stores)
      expect(again.peerId).toBe(node.peerId)
      // The commit of the newest step may have been under way.
      const resumed = await waitForRun(again, id, ({ outerStep }) => outerStep >= 2)
      expect(resumed.tokens).toBeGreaterThan(0)
      const [view, its] = await Promise.all(
        [again, other].map((one) => waitForRun(one, id, isFinished)),
      )
      expect(view?.tokens).toBeGreaterThanOrEqual(resumed.tokens)
      expect(view?.lossStart).toBe(its?.lossStart)
      await agreedCheckpoint([again, other], id)
    } finally {
      await swarm.stop()
    }
  })

  test('the board pauses a run for everybody, and lets it go on', async () => {
    const swarm = await createSwarm(2, 'pause')
    try {
      const [admin, other] = swarm.nodes
      if (!admin || !other) throw new Error('two nodes')
      const { id } = await admin.createRun(
        tinySpec({ outerSteps: 10_000, innerSteps: 20, limits: { ...patient, minPeers: 2 } }),
        text,
      )
      await other.joinRun(id)
      await waitForRun(other, id, ({ outerStep }) => outerStep >= 1)
      await admin.writeBoard(id, 'paused', true)
      await Promise.all(
        [admin, other].map((node) => waitForRun(node, id, ({ status }) => status === 'paused')),
      )
      await expect(other.writeBoard(id, 'paused', false)).rejects.toMatchObject({
        code: 'forbidden',
      })
      const stoodAt = [admin, other].map((node) => node.run(id).outerStep)
      await admin.writeBoard(id, 'paused', false)
      await Promise.all(
        [admin, other].map((node, index) =>
          waitForRun(node, id, ({ outerStep }) => outerStep > (stoodAt[index] ?? 0)),
        ),
      )
    } finally {
      await swarm.stop()
    }
  })
})

describe('discovery', () => {
  test('public runs are found by nodes that nobody told of them; private ones are not', async () => {
    const swarm = await createSwarm(3, 'directory')
    try {
      const [, creator, seeker] = swarm.nodes
      if (!creator || !seeker) throw new Error('three nodes')
      const open = await creator.createRun(
        tinySpec({ name: 'open', outerSteps: 1, seed: 'a' }),
        text,
      )
      const hidden = await creator.createRun(
        tinySpec({ name: 'hidden', public: false, outerSteps: 1, seed: 'b' }),
        text,
      )
      await expect
        .poll(async () => (await seeker.listRuns({ discover: true })).map(({ id }) => id), {
          timeout: 20_000,
        })
        .toContain(open.id)
      const listed = await seeker.listRuns({ discover: true })
      expect(listed.map(({ id }) => id)).not.toContain(hidden.id)
      expect(listed.find(({ id }) => id === open.id)).toMatchObject({ name: 'open', status: null })
    } finally {
      await swarm.stop()
    }
  })

  test('a run that nobody has is run_unknown, a link with its creator is enough', async () => {
    const swarm = await createSwarm(2, 'unknown')
    try {
      const [creator, seeker] = swarm.nodes
      if (!creator || !seeker) throw new Error('two nodes')
      const { id } = await creator.createRun(tinySpec({ outerSteps: 1 }), text)
      const link = creator.invite(id)
      const signal = AbortSignal.timeout(2_000)
      const unknown = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
      await expect(seeker.joinRun(unknown, { signal })).rejects.toThrow()
      expect((await seeker.joinRun(link)).id).toBe(id)
    } finally {
      await swarm.stop()
    }
  })
})
