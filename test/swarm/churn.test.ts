import { describe, expect, test } from 'vitest'
import { createSwarm, isFinished, memoryStores, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()
const patient = { startTimeoutMs: 30_000, roundTimeoutMs: 4_000, checkpointEvery: 2 }

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
      const views = await Promise.all(
        [first, second, third].map((node) => waitForRun(node, id, isFinished)),
      )
      for (const view of views) {
        expect(view.outerStep).toBe(12)
        // Three are left: from the death on there is one group of three, so hardly a round is lost.
        expect(view.rounds.averaged).toBeGreaterThanOrEqual(9)
      }
      expect(new Set(views.map((view) => view.checkpoints.at(-1)?.cid)).size).toBe(1)
    } finally {
      await swarm.stop()
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
          outerSteps: 30,
          innerSteps: 40,
          averaging: { rule },
          limits: { ...patient, minPeers: 2 },
        })
        const { id } = await first.createRun(spec, text)
        await second.joinRun(id)
        await waitForRun(first, id, ({ outerStep }) => outerStep >= 3)
        await late.joinRun(id)
        const views = await Promise.all(
          [first, second, late].map((node) => waitForRun(node, id, isFinished)),
        )
        const joined = views[2]
        expect(joined?.rounds.averaged).toBeGreaterThan(5)
        expect((joined?.rounds.averaged ?? 30) + (joined?.rounds.solo ?? 0)).toBeLessThan(29)
        expect(new Set(views.map((view) => view.checkpoints.at(-1)?.cid)).size).toBe(1)
      } finally {
        await swarm.stop()
      }
    },
  )

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
      expect(again.run(id).id).toBe(id)
      const [resumed, view] = await Promise.all(
        [again, other].map((one) => waitForRun(one, id, isFinished)),
      )
      expect(resumed?.tokens).toBeGreaterThanOrEqual(3 * 30 * 4 * 16)
      expect(resumed?.lossStart).toBe(view?.lossStart)
      expect(resumed?.checkpoints.at(-1)?.cid).toBe(view?.checkpoints.at(-1)?.cid)
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
        tinySpec({ outerSteps: 20, innerSteps: 20, limits: { ...patient, minPeers: 2 } }),
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
      await admin.writeBoard(id, 'paused', false)
      await Promise.all([admin, other].map((node) => waitForRun(node, id, isFinished)))
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
