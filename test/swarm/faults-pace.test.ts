/** Machines of different speed in one swarm: nobody is held up for long, and everybody's work counts. */
import { expect, test } from 'vitest'
import { createEngine } from '../../node/engine/engine.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { RunSpecInput } from '../../src/run/manifest.ts'
import { createSlowEngine } from './slow-engine.ts'
import { createSwarm, memoryStores, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()
const INNER_STEPS = 20
const TOKENS = INNER_STEPS * 4 * 16
/** Usually all rounds average; on a machine that does other work too some partners come late. */
const AVERAGED_SHARE = 0.25

/** Trains on machines that rest so long after every inner step; returns how each has fared over `steps` outer steps. */
async function race(
  seed: string,
  restsMs: readonly number[],
  steps: number,
  averaging: RunSpecInput['averaging'] = {},
): Promise<{ perStepMs: number; tokensPerStep: number; averaged: number; outerStep: number }[]> {
  const swarm = await createSwarm(0, seed)
  const engine = await createEngine({ backend: 'native', threads: 1 })
  try {
    for (const [index, restMs] of restsMs.entries())
      await swarm.add(index, memoryStores(), createSlowEngine(engine, restMs))
    const { nodes } = swarm
    const [first, ...others] = nodes
    if (first === undefined) throw new Error('a swarm has nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        innerSteps: INNER_STEPS,
        averaging,
        limits: { minPeers: nodes.length, roundTimeoutMs: 2_000 },
      }),
      text,
    )
    for (const node of others) await node.joinRun(id)
    // By then all know how fast the others are.
    await Promise.all(nodes.map((node) => waitForRun(node, id, ({ outerStep }) => outerStep >= 3)))
    return await Promise.all(nodes.map((node) => measure(node, id, steps)))
  } finally {
    await swarm.stop()
    await engine.close()
  }
}

async function measure(
  node: ShoalNode,
  id: string,
  steps: number,
): Promise<Awaited<ReturnType<typeof race>>[number]> {
  const before = node.run(id)
  const startedMs = performance.now()
  const after = await waitForRun(node, id, ({ outerStep }) => outerStep >= before.outerStep + steps)
  const done = after.outerStep - before.outerStep
  return {
    perStepMs: (performance.now() - startedMs) / done,
    tokensPerStep: (after.tokens - before.tokens) / done,
    averaged: (after.rounds.averaged - before.rounds.averaged) / done,
    outerStep: after.outerStep,
  }
}

test.each([
  ['', {}],
  [', beside training', { overlapSteps: 4 }],
])(
  'a peer ten times slower contributes what it has, and holds nobody up%s',
  async (_, averaging) => {
    const [slow, ...usual] = await race('one slow', [150, 15, 15, 15], 6, averaging)
    const fullStepMs = INNER_STEPS * 150
    for (const { perStepMs, averaged, tokensPerStep } of usual) {
      expect(perStepMs).toBeLessThan(fullStepMs / 2)
      expect(averaged).toBeGreaterThan(AVERAGED_SHARE)
      // All of it, but for a step in which one has come late.
      expect(tokensPerStep).toBeGreaterThan(0.6 * TOKENS)
    }
    expect(slow?.perStepMs).toBeLessThan(fullStepMs / 2)
    expect(slow?.averaged).toBeGreaterThan(AVERAGED_SHARE)
    expect(slow?.tokensPerStep).toBeGreaterThan(0)
    expect(slow?.tokensPerStep).toBeLessThan(TOKENS / 2)
  },
)

test('a peer much faster than the others does more, and does not run away from them', async () => {
  const [fast, ...usual] = await race('one fast', [0, 30, 30, 30], 6)
  for (const { averaged, tokensPerStep } of usual) {
    expect(averaged).toBeGreaterThan(AVERAGED_SHARE)
    expect(tokensPerStep).toBeGreaterThan(0.5 * TOKENS)
  }
  expect(fast?.averaged).toBeGreaterThan(AVERAGED_SHARE)
  expect(fast?.tokensPerStep).toBeGreaterThan(TOKENS)
  expect(fast?.tokensPerStep).toBeLessThanOrEqual(2 * TOKENS)
  const slowest = Math.min(...usual.map(({ outerStep }) => outerStep))
  expect((fast?.outerStep ?? 0) - slowest).toBeLessThanOrEqual(3)
})
