/** A peer of an all-reduce run that is cut off: it does not run away from the others, and comes back to them. */
import { expect, test } from 'vitest'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import type { RunView } from '../../src/run/view.ts'
import { areEqual, recordCheckpoints } from './checkpoints.ts'
import { createLinks } from './links.ts'
import { createSlowEngine } from './slow-engine.ts'
import { createSwarm, memoryStores, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()
const settings = { outerSteps: 10_000, averaging: { rule: 'diloco' } } as const

test('cut off for a moment it waits for the others, and is with them again', async () => {
  const links = createLinks()
  const swarm = await createSwarm(3, 'cut off', { links })
  try {
    const { nodes } = swarm
    const [first, second, lonely] = nodes
    if (first === undefined || second === undefined || lonely === undefined) throw new Error('3')
    const limits = { minPeers: 3, roundTimeoutMs: 4_000 }
    const { id } = await first.createRun(tinySpec({ ...settings, limits }), text)
    for (const node of [second, lonely]) await node.joinRun(id)
    for (const node of nodes) await waitForRun(node, id, ({ outerStep }) => outerStep >= 2)
    links.cut([lonely.peerId], [first.peerId, second.peerId])
    const { rounds } = await waitForRun(lonely, id, ({ round }) => round?.outcome === 'solo')
    await systemClock.sleep(1_000)
    // It waits for a fifth of a round's time-out at least before each step that it takes alone.
    expect(lonely.run(id).rounds.solo - rounds.solo).toBeLessThan(6)
    links.heal()
    await waitForRun(lonely, id, isTogether)
  } finally {
    await swarm.stop()
  }
})

test('far ahead of many, none of which follow it, it goes back to them', async () => {
  const links = createLinks()
  const swarm = await createSwarm(1, 'far ahead', { links })
  const engine = await createEngine({ backend: 'native', threads: 1 })
  try {
    const [fast] = swarm.nodes
    if (fast === undefined) throw new Error('a swarm has nodes')
    const slow = createSlowEngine(engine, 40)
    for (let index = 1; index < 6; index++) await swarm.add(index, memoryStores(), slow)
    const { nodes } = swarm
    const others = nodes.slice(1)
    const checkpoints = recordCheckpoints(nodes)
    const limits = { minPeers: 6, roundTimeoutMs: 1_000, checkpointEvery: 1 }
    const { id } = await fast.createRun(tinySpec({ ...settings, limits }), text)
    for (const node of others) await node.joinRun(id)
    for (const node of nodes) await waitForRun(node, id, ({ outerStep }) => outerStep >= 2)
    const foremost = (): number => Math.max(...others.map((node) => node.run(id).outerStep))
    links.cut(
      [fast.peerId],
      others.map(({ peerId }) => peerId),
    )
    // Not so far that what it gave to those steps is forgotten by then.
    await waitForRun(fast, id, ({ outerStep }) => outerStep > foremost() + 14)
    const lead = fast.run(id).outerStep
    links.heal()
    const { outerStep } = await waitForRun(fast, id, isTogether)
    expect(outerStep).toBeLessThan(lead)
    const isEqual = (step: number): boolean => {
      const cids = checkpoints.get(step)
      return cids?.size === nodes.length && areEqual(cids)
    }
    await waitForRun(fast, id, (view) => view.outerStep > outerStep && isEqual(view.outerStep))
  } finally {
    await swarm.stop()
    await engine.close()
  }
})

function isTogether({ round }: RunView): boolean {
  return round?.outcome === 'averaged'
}
