/** Joining late and coming back: whatever happens to those who give the state, and however long it takes. */
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { systemClock } from '../../src/clock.ts'
import type { ShoalNode } from '../../src/node.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { createRecorder, type RecordedEvent } from '../unit/net/memory-network.ts'
import { createLinks, type Links } from './links.ts'
import { areEqual, recordCheckpoints } from './checkpoints.ts'
import { createSwarm, memoryStores, realText, tinySpec, waitForRun, type Swarm } from './swarm.ts'
import type { RunSpecInput } from '../../src/run/manifest.ts'
import type { RunView } from '../../src/run/view.ts'

const text = await realText()

/** 0.6 million parameters: 3 chunks of up to 1 MiB. */
const LARGE = { layers: 2, heads: 2, embedding: 150, context: 16 } as const

interface Setting {
  id: string
  /** What the nodes have logged. */
  logged: RecordedEvent[]
  swarm: Swarm
  links: Links
  nodes: ShoalNode[]
}

/** Trains a run on some nodes until they have something to give. */
async function withRun(
  peers: number,
  seed: string,
  overrides: Partial<RunSpecInput>,
  work: (setting: Setting) => Promise<void>,
): Promise<void> {
  const links = createLinks()
  const { logger, events: logged } = createRecorder()
  const swarm = await createSwarm(peers, seed, { links, logger: () => logger })
  try {
    const nodes = [...swarm.nodes]
    const [first, ...others] = nodes
    if (first === undefined) throw new Error('a swarm has nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        innerSteps: 4,
        ...overrides,
        limits: { minPeers: peers, roundTimeoutMs: 4_000, ...overrides.limits },
      }),
      text,
    )
    await Promise.all(others.map((node) => node.joinRun(id)))
    await Promise.all(nodes.map((node) => waitForRun(node, id, ({ outerStep }) => outerStep >= 3)))
    await work({ id, logged, swarm, links, nodes })
  } finally {
    await swarm.stop()
  }
}

const peerIds = (nodes: readonly ShoalNode[]): string[] => nodes.map(({ peerId }) => peerId)
const hasAveraged = ({ rounds, status }: RunView): boolean =>
  status === 'training' && rounds.averaged > 0

describe('a donor', () => {
  test('gives no state from before the outer step that is asked for', async () => {
    await withRun(1, 'steps', { averaging: { rule: 'diloco' } }, async ({ id, swarm, nodes }) => {
      const donor = nodes[0]!
      const network = await swarm.connect(1)
      const signal = AbortSignal.timeout(30_000)
      await network.connect(donor.status().addresses[0] ?? '', signal)
      const ask = async (outerStepMin: number): Promise<number> => {
        const request = encodeCbor({ run: id, cid: null, outerStepMin })
        const reply = await network.rpc.call(donor.peerId, 'run/snapshot', request)
        return parseMessage(z.object({ outerStep: z.number() }), reply, 'snapshot').outerStep
      }
      const { outerStep } = donor.run(id)
      expect(await ask(0)).toBeGreaterThanOrEqual(0)
      // What follows the step is not begun before it is committed.
      await waitForRun(donor, id, (view) => view.outerStep > outerStep + 1)
      expect(await ask(outerStep + 1)).toBeGreaterThan(outerStep)
      await expect(ask(1_000_000)).rejects.toMatchObject({ code: 'run_unknown' })
    })
  })

  test.each([
    ['before it is asked', 0],
    ['a moment into a download', 100],
  ])('may die %s: another gives its state', async (_, afterMs) => {
    await withRun(3, `donor ${afterMs}`, { model: LARGE, innerSteps: 1 }, async (setting) => {
      const { id, swarm, links, nodes } = setting
      // A chunk takes a second.
      for (const peer of peerIds(nodes)) links.limit(peer, 1 << 20)
      const joiner = await swarm.add(3)
      const begun = afterMs === 0 ? Promise.resolve() : servedSomething(nodes)
      const joined = joiner.joinRun(id)
      if (afterMs === 0) await joined
      const donor = afterMs === 0 ? nodes[0]! : await begun.then(() => busiest(nodes))
      await systemClock.sleep(afterMs)
      links.cut([donor.peerId], peerIds([...nodes, joiner]))
      await joined
      for (const peer of peerIds(nodes)) links.limit(peer, Infinity)
      const left = nodes.filter((node) => node !== donor)
      const { round, error } = await waitForRun(joiner, id, hasAveraged)
      expect(error).toBeNull()
      expect(peerIds(left)).toEqual(expect.arrayContaining(round?.partners ?? []))
    })
  })
})

/** Until one of the nodes has sent blobs. */
async function servedSomething(nodes: readonly ShoalNode[]): Promise<void> {
  const before = nodes.map(blobBytesSent)
  while (nodes.every((node, index) => blobBytesSent(node) <= before[index]!))
    await systemClock.sleep(10)
}

function busiest(nodes: readonly ShoalNode[]): ShoalNode {
  return [...nodes].sort((a, b) => blobBytesSent(b) - blobBytesSent(a))[0]!
}

function blobBytesSent(node: ShoalNode): number {
  return node.status().counters['blob_bytes_sent_total'] ?? 0
}

describe('a joiner ten times slower than an outer step', () => {
  test.each(['gossip-diloco', 'diloco'] as const)('catches up (%s)', async (rule) => {
    const overrides = { model: LARGE, innerSteps: 1, averaging: { rule } }
    await withRun(2, `slow ${rule}`, overrides, async (setting) => {
      const { id, logged, swarm, links, nodes } = setting
      const joiner = await swarm.add(2)
      links.limit(joiner.peerId, 256 << 10)
      const from = front(nodes, id)
      await joiner.joinRun(id)
      // It is still fetching the state of a moment that is many outer steps ago.
      await waitForRun(nodes[0]!, id, ({ outerStep }) => outerStep > from + 11)
      expect(joiner.run(id)).toMatchObject({ status: 'fetching', outerStep: 0 })
      links.heal()
      const view = await waitForRun(joiner, id, hasAveraged)
      expect(front(nodes, id) - view.outerStep).toBeLessThanOrEqual(3)
      expect(view.error).toBeNull()
      // Where all hold equal parameters, it has moved the state it got through the rounds since then.
      const replayed = logged.filter(({ event }) => event === 'rounds_replayed')
      if (rule === 'diloco') expect(replayed).not.toEqual([])
    })
  })
})

function front(nodes: readonly ShoalNode[], id: string): number {
  return Math.max(...nodes.map((node) => node.run(id).outerStep))
}

describe('a peer that was away', () => {
  test.each(['gossip-diloco', 'diloco'] as const)(
    'for long is back in step by itself (%s)',
    async (rule) => {
      const limits = { checkpointEvery: 1 }
      await withRun(2, `away ${rule}`, { averaging: { rule }, limits }, async (setting) => {
        const { id, swarm, nodes } = setting
        const stores = memoryStores()
        const absent = await swarm.add(2, stores)
        await absent.joinRun(id)
        const { tokens } = await waitForRun(absent, id, hasAveraged)
        await absent.stop()
        const left = nodes[0]!.run(id).outerStep
        await waitForRun(nodes[0]!, id, ({ outerStep }) => outerStep > left + 40)
        const again = await swarm.add(2, stores)
        const checkpoints = recordCheckpoints([...nodes, again])
        const isBack = ({ round }: RunView): boolean =>
          round?.outcome === 'averaged' && round.outerStep > left + 40
        const view = await waitForRun(again, id, isBack)
        expect(view.tokens).toBeGreaterThanOrEqual(tokens)
        expect(view.status).toBe('training')
        if (rule !== 'diloco') return
        const last = view.outerStep + 3
        await Promise.all(
          [...nodes, again].map((node) =>
            waitForRun(node, id, ({ outerStep }) => outerStep > last),
          ),
        )
        expect([last, checkpoints.get(last)?.size]).toEqual([last, 3])
        expect(areEqual(checkpoints.get(last))).toBe(true)
      })
    },
  )

  test('with all the others goes on with all the others', async () => {
    const swarm = await createSwarm(0, 'all leave')
    try {
      const stores = [0, 1, 2].map(memoryStores)
      const start = (): Promise<ShoalNode[]> =>
        Promise.all(stores.map((own, index) => swarm.add(index, own)))
      const nodes: ShoalNode[] = []
      for (const [index, own] of stores.entries()) nodes.push(await swarm.add(index, own))
      const settings = { outerSteps: 10_000, limits: { minPeers: 3, roundTimeoutMs: 4_000 } }
      const { id } = await nodes[0]!.createRun(tinySpec(settings), text)
      for (const node of nodes.slice(1)) await node.joinRun(id)
      await Promise.all(nodes.map((node) => waitForRun(node, id, ({ outerStep }) => outerStep > 5)))
      await Promise.all(nodes.map((node) => node.stop()))
      const before = nodes.map((node) => node.run(id))
      const again = await start()
      const views = await Promise.all(
        again.map((node, index) =>
          waitForRun(node, id, ({ round, outerStep }) => {
            return outerStep > before[index]!.outerStep + 3 && round?.outcome === 'averaged'
          }),
        ),
      )
      for (const [index, view] of views.entries())
        expect(view.tokens).toBeGreaterThan(before[index]!.tokens - 5 * 4 * 16)
    } finally {
      await swarm.stop()
    }
  })
})
