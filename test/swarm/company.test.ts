/** A peer that is cut off: it does not run away from the others, and they come together again. */
import { expect, test } from 'vitest'
import { createEngine } from '../../node/engine/engine.ts'
import { systemClock } from '../../src/clock.ts'
import type { RunView } from '../../src/run/view.ts'
import { createLinks } from './links.ts'
import { createSlowEngine } from './slow-engine.ts'
import { createSwarm, memoryStores, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

test('cut off for a moment in an all-reduce run it waits for the others, and is with them again', async () => {
  const links = createLinks()
  const swarm = await createSwarm(3, 'cut off', { links })
  try {
    const { nodes } = swarm
    const [first, second, lonely] = nodes
    if (first === undefined || second === undefined || lonely === undefined) throw new Error('3')
    const limits = { minPeers: 3, roundTimeoutMs: 4_000 }
    const spec = tinySpec({ outerSteps: 10_000, averaging: { rule: 'diloco' }, limits })
    const { id } = await first.createRun(spec, text)
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

test.each(['gossip-diloco', 'diloco'] as const)(
  'far ahead of many it is with them again (%s)',
  async (rule) => {
    // In an all-reduce run they come to it, in a gossip run it goes back to them.
    const links = createLinks()
    const swarm = await createSwarm(1, `far ahead ${rule}`, { links })
    const engine = await createEngine({ backend: 'native', threads: 1 })
    try {
      const [fast] = swarm.nodes
      if (fast === undefined) throw new Error('a swarm has nodes')
      const slow = createSlowEngine(engine, 40)
      for (let index = 1; index < 6; index++) await swarm.add(index, memoryStores(), slow)
      const { nodes } = swarm
      const others = nodes.slice(1)
      const limits = { minPeers: 6, roundTimeoutMs: 1_000 }
      const spec = tinySpec({ outerSteps: 10_000, averaging: { rule }, limits })
      const { id } = await fast.createRun(spec, text)
      for (const node of others) await node.joinRun(id)
      for (const node of nodes) await waitForRun(node, id, ({ outerStep }) => outerStep >= 2)
      const foremost = (): number => Math.max(...others.map((node) => node.run(id).outerStep))
      links.cut(
        [fast.peerId],
        others.map(({ peerId }) => peerId),
      )
      // Not so far that what it gave to those steps is forgotten by then.
      await waitForRun(
        fast,
        id,
        ({ round, outerStep }) => round?.outcome === 'solo' && outerStep > foremost() + 14,
      )
      const lead = fast.run(id).outerStep
      const steps: number[] = []
      fast.onEvent((event) => event.type === 'outer_step' && steps.push(event.outerStep))
      links.heal()
      const { outerStep } = await waitForRun(fast, id, isTogether)
      if (rule === 'gossip-diloco') {
        expect(Math.max(lead, ...steps)).toBeGreaterThan(outerStep)
        return
      }
      expect(outerStep).toBeGreaterThan(lead)
      const equals = (hash: string | null): boolean =>
        others.every((node) => node.run(id).parametersHash === hash)
      await waitForRun(fast, id, ({ parametersHash }) => equals(parametersHash))
    } finally {
      await swarm.stop()
      await engine.close()
    }
  },
)

function isTogether({ round }: RunView): boolean {
  return round?.outcome === 'averaged'
}
