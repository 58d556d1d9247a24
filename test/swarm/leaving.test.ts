/** Leaving well: nobody waits in vain for who leaves, and what is being fetched from it arrives. */
import { expect, test } from 'vitest'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import { asFault } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { RoundView, RunView } from '../../src/run/view.ts'
import { createLinks } from './links.ts'
import { createSlowEngine } from './slow-engine.ts'
import { parseRunId } from '../../src/run/run-id.ts'
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

/** 0.6 million parameters: 3 chunks of up to 1 MiB. */
const LARGE = { layers: 2, heads: 2, embedding: 150, context: 16 } as const

async function blobsIn({ blobs }: Stores): Promise<number> {
  let count = 0
  for await (const _ of blobs.list()) count++
  return count
}

function blobBytesSent(node: ShoalNode): number {
  return node.status().counters['blob_bytes_sent_total'] ?? 0
}

test('the only donor of a joiner stays until that has its state', async () => {
  const links = createLinks()
  const swarm = await createSwarm(0, 'only donor', { links })
  try {
    const stores = memoryStores()
    const donor = await swarm.add(0, stores)
    const { id } = await donor.createRun(
      tinySpec({ model: LARGE, outerSteps: 10_000, innerSteps: 2 }),
      text,
    )
    await waitForRun(donor, id, ({ outerStep }) => outerStep >= 3)
    const joiner = await swarm.add(1)
    await joiner.joinRun(id)
    // A chunk takes a second.
    links.limit(donor.peerId, 1 << 20)
    const before = blobBytesSent(donor)
    await until(() => blobBytesSent(donor) > before + 2_000)
    const left = donor.run(id).outerStep
    const leaving = donor.leaveRun(id)
    const view = await waitForRun(joiner, id, ({ status }) => status === 'training')
    expect(view).toMatchObject({ error: null })
    expect(view.outerStep).toBeGreaterThanOrEqual(Math.min(3, left))
    await leaving
    expect(await blobsIn(stores)).toBe(0)
    expect(donor.runs()).toEqual([])
    await waitForRun(joiner, id, ({ outerStep }) => outerStep > view.outerStep + 1)
  } finally {
    await swarm.stop()
  }
})

async function until(check: () => boolean): Promise<void> {
  while (!check()) await systemClock.sleep(10)
}

test('who leaves in the middle of a step contributes what it has done of it, and nobody waits for it', async () => {
  const swarm = await createSwarm(0, 'middle of a step')
  const engine = await createEngine({ backend: 'native', threads: 1 })
  try {
    // An outer step takes a second.
    for (const index of [0, 1]) await swarm.add(index, memoryStores(), createSlowEngine(engine, 50))
    const [first, second] = swarm.nodes
    if (first === undefined || second === undefined) throw new Error('two nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        innerSteps: 20,
        averaging: { rule: 'diloco' },
        limits: { minPeers: 2, roundTimeoutMs: 5_000 },
      }),
      text,
    )
    await second.joinRun(id)
    const rounds: RoundView[] = []
    first.onEvent((event) => {
      if (event.type === 'outer_step') rounds.push(event.round)
    })
    const isAmid = (view: RunView): boolean =>
      view.outerStep >= 2 && view.innerStep >= 4 && view.innerStep <= 12
    const { outerStep } = await waitForRun(second, id, isAmid)
    const startedMs = performance.now()
    await second.leaveRun(id)
    // Its partner was to finish the step first, and then nothing was asked for any more.
    expect(performance.now() - startedMs).toBeLessThan(DEADLINES.leaveMs)
    await waitForRun(first, id, (view) => view.outerStep > outerStep + 2)
    const own = rounds.find((round) => round.outerStep === outerStep)
    expect(own).toMatchObject({ outcome: 'averaged', partners: [second.peerId], reasons: [] })
    // Nobody was asked, so nobody was waited for.
    const next = rounds.find((round) => round.outerStep === outerStep + 1)
    expect(next).toMatchObject({ outcome: 'solo', partners: [], reasons: [] })
  } finally {
    await swarm.stop()
    await engine.close()
  }
})

test('a step that a script hands in while its node leaves does not take the farewell back', async () => {
  const swarm = await createSwarm(2, 'script and farewell')
  try {
    const [first, second] = swarm.nodes
    if (first === undefined || second === undefined) throw new Error('two nodes')
    const { id } = await first.createRun(tinySpec({ outerSteps: 10_000 }), text)
    await second.joinRun(id, { trainer: 'outside' })
    const script = second.trainingScript(id)
    const signal = AbortSignal.timeout(50_000)
    /** A swarm that has gone on meanwhile says so: then the script takes its parameters anew. */
    const handIn = async (): Promise<void> => {
      const { outerStep, parameters } = await script.parameters(signal)
      const step = { outerStep, tokens: 100, loss: 3, innerSteps: 5 }
      await script
        .outerStep(step, async (target) => target.set(parameters), signal)
        .catch((thrown: unknown) => {
          if (asFault(thrown).code !== 'conflict') throw thrown
        })
    }
    const told = (): string | undefined =>
      first.members(id).find(({ peer }) => peer === second.peerId)?.record.status
    // Whoever has just been given something may need more: its giver stays for a moment.
    const isGiven = (): boolean => first.run(id).round?.partners.includes(second.peerId) === true
    while (!isGiven()) await handIn()
    const leaving = second.leaveRun(id)
    await until(() => told() === 'leaving')
    // On a busy machine the node may be gone before the step is done.
    await Promise.allSettled([handIn(), leaving])
    expect(told()).toBe('leaving')
  } finally {
    await swarm.stop()
  }
})

test('a run is joined again only when all of it is forgotten', async () => {
  const swarm = await createSwarm(1, 'forgotten')
  const { promise: forgetting, resolve: forget } = Promise.withResolvers<void>()
  try {
    const [first] = swarm.nodes
    if (first === undefined) throw new Error('a node')
    const { id } = await first.createRun(tinySpec({ outerSteps: 10_000 }), text)
    const stores = memoryStores()
    const list: Stores['records']['list'] = async (prefix) => {
      if (prefix.startsWith('events/')) await forgetting
      return stores.records.list(prefix)
    }
    const second = await swarm.add(1, { ...stores, records: { ...stores.records, list } })
    await second.joinRun(id)
    await waitForRun(second, id, ({ outerStep }) => outerStep > 0)
    const leaving = second.leaveRun(id)
    // Asked for while it is still there.
    const joining = second.joinRun(id)
    await until(() => second.runs().length === 0)
    await systemClock.sleep(500)
    expect(second.runs()).toEqual([])
    forget()
    await leaving
    expect((await joining).id).toBe(id)
    await waitForRun(second, id, ({ status }) => status === 'training')
    const logged = []
    for await (const { number } of second.loggedEvents(id)) logged.push(number)
    expect(logged[0]).toBe(1)
  } finally {
    forget()
    await swarm.stop()
  }
})

test('who leaves one run does not wait for those who fetch another', async () => {
  const swarm = await createSwarm(2, 'two runs')
  const over = new AbortController()
  try {
    const [first, second] = swarm.nodes
    if (first === undefined || second === undefined) throw new Error('two nodes')
    const short = { outerSteps: 1, limits: { minPeers: 2 } }
    const { id } = await first.createRun(tinySpec({ ...short, seed: 'left' }), text)
    await second.joinRun(id)
    const other = await first.createRun(tinySpec({ outerSteps: 10_000, seed: 'stays' }), text)
    for (const node of [first, second]) await waitForRun(node, id, isFinished)
    const stranger = await swarm.connect(2)
    await stranger.connect(first.status().addresses[0] ?? '', over.signal)
    const ask = (): Promise<unknown> =>
      stranger.rpc.call(first.peerId, 'blob/get', parseRunId(other.id).bytes, { lane: 'bulk' })
    const asking = (async () => {
      while (!over.signal.aborted) {
        await ask()
        await systemClock.sleep(100)
      }
    })()
    const leaving = first.leaveRun(id).then(() => 'left')
    // It is quiet for three seconds, and stays for twenty at most where somebody still fetches.
    const late = systemClock.sleep(12_000, over.signal).then(
      () => 'waits',
      () => 'over',
    )
    expect(await Promise.race([leaving, late])).toBe('left')
    over.abort()
    await asking
  } finally {
    over.abort()
    await swarm.stop()
  }
})
