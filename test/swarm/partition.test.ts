/**
 * A swarm that is split in two trains on in both halves. When it is whole again nobody is the winner: the replicas come
 * together at their mean, weighted by the work behind them: at once where all hold equal parameters, else within the
 * number of rounds stated below.
 */
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import type { ShoalNode } from '../../src/node.ts'
import { consensusDistance } from '../../src/optim/consensus.ts'
import { weightedMean } from '../../src/optim/combine.ts'
import type { RunSpecInput } from '../../src/run/manifest.ts'
import type { RunView } from '../../src/run/view.ts'
import { subtract } from '../../src/tensor/vector.ts'
import { areEqual, recordCheckpoints } from './checkpoints.ts'
import { createLinks, type Links } from './links.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

/** Groups of 2 leave 0.6 of the squared distance of 6 replicas each round, so a twentieth of the distance. */
const GOSSIP_ROUNDS_TO_HEAL = 10
/** All-reduce peers are equal at once; a busy machine may spoil a round. */
const ROUNDS_TO_EQUAL = 12
/** Outer steps that the halves train apart. */
const STEPS_APART = 16

interface Split {
  id: string
  links: Links
  nodes: ShoalNode[]
  halves: [ShoalNode[], ShoalNode[]]
}

/** Trains a run on a swarm of two parts, which know nothing of their being parts. */
async function withSplit(
  seed: string,
  sizes: [number, number],
  overrides: Partial<RunSpecInput>,
  work: (split: Split) => Promise<void>,
): Promise<void> {
  const links = createLinks()
  const peers = sizes[0] + sizes[1]
  const swarm = await createSwarm(peers, seed, { links })
  try {
    const { nodes } = swarm
    const [first, ...others] = nodes
    if (first === undefined) throw new Error('a swarm has nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        // Long enough for the links to come up again within a few steps.
        innerSteps: 20,
        ...overrides,
        limits: { minPeers: peers, roundTimeoutMs: 4_000, ...overrides.limits },
      }),
      text,
    )
    await Promise.all(others.map((node) => node.joinRun(id)))
    await reach(nodes, id, () => 4)
    await work({ id, links, nodes, halves: [nodes.slice(0, sizes[0]), nodes.slice(sizes[0])] })
  } finally {
    await swarm.stop()
  }
}

/** Until every node has completed `steps` of it more outer steps than it has now, or is at an absolute step. */
async function reach(
  nodes: readonly ShoalNode[],
  id: string,
  goal: (now: RunView) => number,
): Promise<void> {
  await Promise.all(
    nodes.map(async (node) => {
      const target = goal(node.run(id))
      await waitForRun(node, id, ({ outerStep }) => outerStep >= target)
    }),
  )
}

async function replicas(nodes: readonly ShoalNode[], id: string): Promise<Float32Array[]> {
  const signal = AbortSignal.timeout(10_000)
  const states = await Promise.all(nodes.map((node) => node.parameters(id, signal)))
  return states.map(({ parameters }) => parameters)
}

function dot(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, index) => sum + value * b[index]!, 0)
}

const peerIds = (nodes: readonly ShoalNode[]): string[] => nodes.map(({ peerId }) => peerId)

interface Healed {
  /** Consensus distance at the end of the time apart. */
  apart: number
  /** Where the swarm's mean is: 0 at the first half's, 1 at the second's, as they were at the end of the time apart. */
  position: number
  /** Where it should be by the tokens that each half has trained on while they were apart. */
  expected: number
}

/** Parts the halves, lets them train apart, and joins them. Returns when all are together again, and a few steps on. */
async function partAndHeal({ id, links, nodes, halves }: Split): Promise<Healed> {
  const halfOf = (peer: string): ShoalNode[] =>
    halves.find((half) => peerIds(half).includes(peer)) ?? []
  const tokensOf = (half: ShoalNode[]): number =>
    half.reduce((sum, node) => sum + node.run(id).tokens, 0)
  const tokensBefore = halves.map(tokensOf)
  links.cut(peerIds(halves[0]), peerIds(halves[1]))
  await reach(nodes, id, ({ outerStep }) => outerStep + STEPS_APART)
  const lastApart = new Map<string, Promise<Float32Array[]>>()
  const together = new Set<string>()
  for (const node of nodes) {
    node.onEvent((event) => {
      if (event.type !== 'outer_step') return
      const own = peerIds(halfOf(node.peerId))
      const isApart = event.round.partners.every((peer) => own.includes(peer))
      if (!isApart) together.add(node.peerId)
      // From the first meeting on, what one has learned from the other half spreads in its own.
      else if (together.size === 0) lastApart.set(node.peerId, replicas([node], id))
    })
  }
  await until(() => lastApart.size === nodes.length)
  expect([...together]).toEqual([])
  const work = halves.map((half, index) => tokensOf(half) - (tokensBefore[index] ?? 0))
  links.heal()
  await until(() => together.size === nodes.length)
  await reach(nodes, id, ({ outerStep }) => outerStep + 3)
  const after = await replicas(nodes, id)
  const before = async (half: ShoalNode[]): Promise<Float32Array[]> =>
    (await Promise.all(peerIds(half).map(async (peer) => lastApart.get(peer) ?? []))).flat()
  const [some, others] = [await before(halves[0]), await before(halves[1])]
  const from = weightedMean(some)
  const way = subtract(weightedMean(others), from)
  const position = dot(subtract(weightedMean(after), from), way) / dot(way, way)
  const expected = (work[1] ?? 0) / work.reduce((sum, tokens) => sum + tokens, 0)
  return { apart: consensusDistance([...some, ...others]), position, expected }
}

/** Resolves when `check` holds; the test's time-out is the deadline. */
async function until(check: () => boolean): Promise<void> {
  while (!check()) await systemClock.sleep(20)
}

describe('gossip', () => {
  test('two halves come together in the middle, and are as close as before within the stated rounds', async () => {
    await withSplit('halves', [3, 3], { averaging: { groupSize: 2 } }, async (split) => {
      const { nodes, id } = split
      const samples: number[] = []
      for (const step of [6, 8, 10]) {
        await reach(nodes, id, () => step)
        samples.push(consensusDistance(await replicas(nodes, id)))
      }
      const usual = Math.max(...samples)
      const { apart, position, expected } = await partAndHeal(split)
      expect(apart).toBeGreaterThan(1.5 * usual)
      // Training goes on meanwhile, so no more can be said than that neither half's work is lost.
      expect(position).toBeGreaterThan(expected / 4)
      expect(1 - position).toBeGreaterThan((1 - expected) / 4)
      // It varies from round to round: back to normal is where it is seen to be once.
      const healed: number[] = []
      for (let round = 0; round < GOSSIP_ROUNDS_TO_HEAL; round++) {
        await reach(nodes, id, ({ outerStep }) => outerStep + 1)
        healed.push(consensusDistance(await replicas(nodes, id)))
      }
      expect(Math.min(...healed)).toBeLessThan(1.5 * usual)
    })
  })
})

describe('all-reduce', () => {
  test.each([
    ['halves', [2, 2]],
    ['two peers', [1, 1]],
  ] as const)('%s merge by tokens and hold equal parameters again', async (name, sizes) => {
    const overrides = { averaging: { rule: 'diloco' }, limits: { checkpointEvery: 1 } } as const
    await withSplit(name, [sizes[0], sizes[1]], overrides, async (split) => {
      const checkpoints = recordCheckpoints(split.nodes)
      const { apart, position, expected } = await partAndHeal(split)
      expect(apart).toBeGreaterThan(0)
      expect(Math.abs(position - expected)).toBeLessThan(0.2)
      const from = Math.max(...split.nodes.map((node) => node.run(split.id).outerStep))
      const isEqual = (step: number): boolean =>
        checkpoints.get(step)?.size === split.nodes.length && areEqual(checkpoints.get(step))
      // In the next two rounds, unless a busy machine holds a peer up for longer than a round may take.
      const equal: boolean[] = []
      while (!equal.slice(-2).every(Boolean) || equal.length < 2) {
        const step = from + equal.length + 1
        await reach(split.nodes, split.id, () => step + 1)
        equal.push(isEqual(step))
        if (equal.length === ROUNDS_TO_EQUAL) break
      }
      expect(equal.slice(-2)).toEqual([true, true])
    })
  })
})
