import { describe, expect, test } from 'vitest'
import { createSwarm, isFinished, realText, tinySpec, waitForRun } from './swarm.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { RoundView, RunView } from '../../src/run/view.ts'
import type { RunSpecInput } from '../../src/run/manifest.ts'

const text = await realText()

/** Trains one run on a fresh swarm to its end and returns every node's last view, and its rounds. */
async function train(
  peers: number,
  seed: string,
  overrides: Partial<RunSpecInput>,
): Promise<{ views: RunView[]; rounds: RoundView[][] }> {
  const swarm = await createSwarm(peers, seed)
  try {
    const rounds = swarm.nodes.map(roundsOf)
    const [first, ...others] = swarm.nodes
    if (first === undefined) throw new Error('a swarm has nodes')
    const spec = tinySpec({
      ...overrides,
      seed,
      limits: {
        minPeers: peers,
        // What a busy machine delays must not change who averages with whom: patience is a share of these.
        startTimeoutMs: 600_000,
        roundTimeoutMs: 600_000,
        ...overrides.limits,
      },
    })
    const { id } = await first.createRun(spec, text)
    await Promise.all(others.map((node) => node.joinRun(id)))
    const views = await Promise.all(
      swarm.nodes.map((node) => waitForRun(node, id, isFinished, 300_000)),
    )
    return { views, rounds }
  } finally {
    await swarm.stop()
  }
}

/** The rounds of a node from now on, as they happen. */
function roundsOf(node: ShoalNode): RoundView[] {
  const rounds: RoundView[] = []
  node.onEvent((event) => {
    if (event.type === 'outer_step') rounds.push(event.round)
  })
  return rounds
}

const partnersByStep = (rounds: readonly RoundView[]): string[][] =>
  rounds.map(({ partners }) => partners)

describe('a swarm of 16', () => {
  test('trains, agrees, and replays bit by bit from its seed', async () => {
    const overrides = { outerSteps: 4, innerSteps: 3, averaging: { groupSize: 4 } } as const
    const { views, rounds } = await train(16, 'replay', overrides)
    for (const { partners, reasons } of rounds.flat()) {
      expect(reasons).toEqual([])
      expect(partners).toHaveLength(3)
    }
    for (const view of views) {
      expect(view.rounds).toEqual({ averaged: 4, solo: 0, stale: 0 })
      expect(view.members).toHaveLength(16)
      expect(view.validationLoss).toBeLessThan(view.lossStart ?? 0)
      expect(view.checkpoints.at(-1)).toMatchObject({ final: true, outerStep: 4 })
    }
    // The final merge: one checkpoint, made by all of them.
    expect(new Set(views.map((view) => view.checkpoints.at(-1)?.cid)).size).toBe(1)
    const again = await train(16, 'replay', overrides)
    // Who averaged with whom, before the bits that came of it: it says where two replays parted.
    expect(again.rounds.map(partnersByStep)).toEqual(rounds.map(partnersByStep))
    expect(again.views.map((view) => view.parametersHash)).toEqual(
      views.map((view) => view.parametersHash),
    )
    const [one, other] = [await train(2, 'replay', {}), await train(2, 'another seed', {})]
    expect(other.views[0]?.parametersHash).not.toBe(one.views[0]?.parametersHash)
  }, 900_000)
})

describe('averaging rules', () => {
  test('all-reduce DiLoCo: equal parameters on all peers without any merge', async () => {
    const { views } = await train(4, 'diloco', { averaging: { rule: 'diloco' } })
    for (const view of views) {
      expect(view.rounds).toEqual({ averaged: 6, solo: 0, stale: 0 })
      expect(view.round?.partners).toHaveLength(3)
      expect(view.consensusDistance).toBe(0)
    }
    expect(new Set(views.map((view) => view.parametersHash)).size).toBe(1)
  })

  test('NoLoCo as published trains in pairs', async () => {
    const { views } = await train(4, 'noloco', { averaging: { rule: 'noloco' } })
    for (const view of views) {
      expect(view.rounds.averaged).toBe(6)
      expect(view.round?.partners).toHaveLength(1)
      expect(view.validationLoss).toBeLessThan(view.lossStart ?? 0)
    }
  })

  test('a lone peer trains solo', async () => {
    const { views } = await train(1, 'alone', {})
    expect(views[0]?.rounds).toEqual({ averaged: 0, solo: 6, stale: 0 })
    expect(views[0]?.validationLoss).toBeLessThan(views[0]?.lossStart ?? 0)
  })
})
