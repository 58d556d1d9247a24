import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEngine } from '../../../../../node/engine/engine.ts'
import { consensusTrials } from '../../../../../scripts/bench/convergence/consensus-trials.ts'
import { EXACT, gossipOf } from '../../../../../scripts/bench/convergence/cases.ts'
import { ALPHABET, corpusDataset, topicShards } from '../../../../../scripts/bench/corpus.ts'
import {
  simulate,
  type Method,
  type SimulationSetup,
} from '../../../../../scripts/bench/convergence/simulation.ts'
import { singleProcessDiloco } from '../../../../../scripts/bench/convergence/single-process-diloco.ts'
import { ShoalError } from '../../../../../src/errors.ts'
import { expectedContraction } from '../../../../../src/optim/consensus.ts'
import { innerOptimizerSchema } from '../../../../../src/run/manifest.ts'
import type { Engine } from '../../../../../src/run/trainer.ts'

const CONTEXT = 8
const OUTER_STEPS = 3
const { signal } = new AbortController()
let engine: Engine
let setup: SimulationSetup

beforeAll(async () => {
  engine = await createEngine({ threads: 1 })
  const dataset = await corpusDataset(CONTEXT)
  setup = {
    model: {
      kind: 'gpt',
      layers: 1,
      heads: 2,
      embedding: 8,
      context: CONTEXT,
      vocabulary: ALPHABET.length,
      activation: 'relu-squared',
    },
    dataset,
    shards: topicShards(dataset),
    batchSequences: 4,
    inner: innerOptimizerSchema.parse({ learningRate: 1e-2, warmupSteps: 2 }),
    innerSteps: 4,
  }
})
afterAll(() => engine.close())

const run = (method: Method, peers: number, seed = 'seed', on = engine) =>
  simulate(on, setup, { method, peers, outerSteps: OUTER_STEPS, seed }, { signal })

describe('simulated swarm', () => {
  test('is the same bit by bit in another engine, and another one with another seed', async () => {
    const first = await run(gossipOf(2), 4)
    const other = await createEngine({ threads: 1 })
    try {
      const second = await run(gossipOf(2), 4, 'seed', other)
      expect(second.figures).toEqual(first.figures)
      expect(second.replicas).toEqual(first.replicas)
    } finally {
      await other.close()
    }
    expect((await run(gossipOf(2), 4, 'other')).figures.hash).not.toBe(first.figures.hash)
  })

  test('keeps replicas closer than without communication, in small messages', async () => {
    const [gossip, alone] = [await run(gossipOf(2), 4), await run({ kind: 'alone' }, 4)]
    expect(gossip.figures.drift).toBeGreaterThan(0)
    expect(gossip.figures.drift).toBeLessThan(alone.figures.drift / 2)
    expect(alone.figures.messageBytes).toBe(0)
    expect(gossip.figures.messageBytes).toBeGreaterThan(1.59 * gossip.figures.parameters)
    expect(gossip.figures.messageBytes).toBeLessThan(1.6 * gossip.figures.parameters + 1000)
  })

  test('of one group is DiLoCo, of one peer SNOO', async () => {
    for (const peers of [1, 3]) {
      const { replicas } = await run(gossipOf(peers, EXACT), peers)
      const simulated = { workers: peers, outerSteps: OUTER_STEPS, seed: 'seed' }
      const outer = { learningRate: 0.7, momentum: 0.8 }
      const reference = await singleProcessDiloco(engine, setup, { ...simulated, ...outer }, signal)
      for (const replica of replicas) {
        const errors = replica.map((value, index) => Math.abs(value - reference[index]!))
        expect(Math.max(...errors)).toBeLessThan(1e-6)
      }
    }
  })

  test('trains one model on the batches of all peers when data parallel', async () => {
    const { figures, replicas } = await run({ kind: 'data-parallel' }, 4)
    expect(replicas).toHaveLength(1)
    expect(figures.drift).toBe(0)
    // Loss of a model that knows nothing.
    expect(figures.merged).toBeLessThan(Math.log(ALPHABET.length))
  })

  test.each(['gossip-diloco', 'diloco'] as const)(
    'loses what failing peers do: %s',
    async (rule) => {
      const method = gossipOf(2, { rule })
      const simulated = { method, peers: 4, outerSteps: OUTER_STEPS, seed: 'seed', churn: 0.5 }
      const first = await simulate(engine, setup, simulated, { signal })
      const again = await simulate(engine, setup, simulated, { signal })
      expect(again.figures).toEqual(first.figures)
      expect(first.figures.hash).not.toBe((await run(method, 4)).figures.hash)
      // All-reduce peers, newcomers among them, hold the same parameters.
      if (rule === 'diloco') expect(first.figures.drift).toBe(0)
      expect(first.figures.merged).toBeLessThan(Math.log(ALPHABET.length))
    },
  )

  test('with liars measures the honest, whom defence keeps from harm', async () => {
    const lossOf = async (defence: 'none' | 'robust') => {
      const method = gossipOf(4, { defence })
      const attackers = { share: 0.25, scale: 20 }
      const simulated = { method, peers: 4, outerSteps: OUTER_STEPS, seed: 'seed', attackers }
      const { figures, replicas } = await simulate(engine, setup, simulated, { signal })
      expect(replicas).toHaveLength(3)
      return figures.merged
    }
    const [bare, robust] = [await lossOf('none'), await lossOf('robust')]
    expect(bare).toBeGreaterThan(Math.log(ALPHABET.length))
    expect(robust).toBeLessThan(Math.log(ALPHABET.length))
  })

  test('gives peers different data when it is sharded', async () => {
    const simulated = { method: gossipOf(2), peers: 4, outerSteps: OUTER_STEPS, seed: 'seed' }
    const { figures } = await simulate(engine, setup, { ...simulated, sharded: true }, { signal })
    const alike = await run(gossipOf(2), 4)
    expect(figures.hash).not.toBe(alike.figures.hash)
    // Only the data differs: as many tokens, as many bytes.
    expect(figures.messageBytes).toBe(alike.figures.messageBytes)
  })

  test('ends when aborted', async () => {
    const fault = new ShoalError('aborted', 'interrupted')
    const simulated = { method: gossipOf(2), peers: 2, outerSteps: 1000, seed: 'seed' }
    const controller = new AbortController()
    const onOuterStep = (): void => controller.abort(fault)
    const simulation = simulate(engine, setup, simulated, {
      signal: controller.signal,
      onOuterStep,
    })
    await expect(simulation).rejects.toBe(fault)
  })
})

test('averaging alone contracts as the theory of random groups says', () => {
  const { contraction, driftLeft } = consensusTrials(50, 16, 4, 8)
  expect(contraction / expectedContraction(16, 4)).toBeCloseTo(1, 1)
  expect(driftLeft).toBeLessThan(0.01)
})
