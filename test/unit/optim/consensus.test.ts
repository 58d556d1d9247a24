import { describe, expect, test } from 'vitest'
import { codecs } from '../../../src/codec/codec.ts'
import { weightedMean } from '../../../src/optim/combine.ts'
import {
  consensusDistance,
  estimateConsensusDistance,
  expectedContraction,
} from '../../../src/optim/consensus.ts'
import { seededRandom, type Random } from '../../../src/random.ts'
import { squaredDistance, sumOfSquares } from '../../../src/tensor/vector.ts'
import contraction from '../../vectors/consensus_contraction.json' with { type: 'json' }
import { floats } from '../oracle.ts'

/** Replicas around 1, so that their mean has a norm. */
function swarmOf(peers: number, elements: number, random: Random): Float32Array[] {
  return Array.from({ length: peers }, () =>
    Float32Array.from({ length: elements }, () => 1 + random.normal()),
  )
}

function shuffled(count: number, random: Random): number[] {
  const order = Array.from({ length: count }, (_, i) => i)
  for (let i = count - 1; i > 0; i--) {
    const j = random.integer(i + 1)
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  return order
}

/** One round of averaging in random disjoint groups. */
function averageInGroups(swarm: Float32Array[], group: number, random: Random): Float32Array[] {
  const order = shuffled(swarm.length, random)
  const next = [...swarm]
  for (let from = 0; from < order.length; from += group) {
    const members = order.slice(from, from + group)
    const mean = weightedMean(members.map((i) => swarm[i]!))
    for (const i of members) next[i] = mean
  }
  return next
}

describe('expectedContraction', () => {
  test.each(contraction.rows)('hits the vectors: N $N, n $group', ({ N, group, predicted }) => {
    expect(expectedContraction(N, group)).toBeCloseTo(predicted, 12)
  })

  // Bar B10, first half.
  test.each(contraction.rows)(
    '200 trials of averaging meet it within 15 %: N $N, n $group',
    ({ N, group }) => {
      const random = seededRandom('contraction', N, group)
      let sum = 0
      for (let trial = 0; trial < 200; trial++) {
        const swarm = swarmOf(N, 16, random)
        const after = consensusDistance(averageInGroups(swarm, group, random))
        sum += (after / consensusDistance(swarm)) ** 2
      }
      const expected = expectedContraction(N, group)
      // All peers in one group agree at once, but for rounding.
      if (expected === 0) expect(sum / 200).toBeLessThan(1e-12)
      else expect(Math.abs(sum / 200 / expected - 1)).toBeLessThan(0.15)
    },
  )

  // Bar B10, second half.
  test.each([4, 8, 16, 64])(
    'after ceil(log2 N) + 4 rounds of n = 4 the drift of %i peers is below a hundredth',
    (peers) => {
      const random = seededRandom('merge', peers)
      let swarm = swarmOf(peers, 256, random)
      const before = consensusDistance(swarm)
      for (let round = 0; round < Math.ceil(Math.log2(peers)) + 4; round++) {
        swarm = averageInGroups(swarm, 4, random)
      }
      expect(consensusDistance(swarm) / before).toBeLessThan(0.01)
    },
  )

  test('one peer, and groups larger than the swarm, agree at once', () => {
    expect(expectedContraction(1, 4)).toBe(0)
    expect(expectedContraction(3, 4)).toBeCloseTo(0, 12)
  })
})

describe('consensusDistance', () => {
  test('is the rms distance to the mean as a share of its norm', () => {
    expect(consensusDistance([floats([3, 5]), floats([3, 3])])).toBeCloseTo(1 / 5, 12)
    expect(consensusDistance([floats([1, 2]), floats([1, 2])])).toBe(0)
    expect(consensusDistance([floats([1, 2])])).toBe(0)
    expect(consensusDistance([floats([0]), floats([0])])).toBe(0)
  })
})

describe('estimateConsensusDistance', () => {
  const peers = 16
  const elements = 4000
  const codec = codecs['int8-128']

  /** Replicas so far apart, as a share of their norm. */
  function driftedSwarm(distance: number): Float32Array[] {
    const random = seededRandom('drift', distance)
    const center = Float32Array.from({ length: elements }, () => random.normal())
    return Array.from({ length: peers }, () =>
      center.map((value) => value + distance * random.normal()),
    )
  }

  /** What the first of `members` random peers concludes from what it receives. */
  function estimateOf(swarm: readonly Float32Array[], members: number, random: Random): number {
    const [self, ...others] = shuffled(peers, random)
      .slice(0, members)
      .map((i) => swarm[i]!)
    const decoded = (vector: Float32Array) => codec.decode(codec.encode(vector), vector.length)
    const estimate = estimateConsensusDistance(
      {
        squaredDistances: others.map((other) => squaredDistance(self!, decoded(other))),
        squaredNorm: sumOfSquares(self!),
        squaredError: squaredDistance(self!, decoded(self!)),
      },
      peers,
    )
    return estimate ?? Number.NaN
  }

  test.each([
    [0.05, 2],
    [0.02, 2],
    [0.02, 4],
    // Far below the codec's step.
    [0.002, 4],
    [0.002, 16],
  ])('distance %f is seen through int8 by groups of %i', (distance, members) => {
    const swarm = driftedSwarm(distance)
    const random = seededRandom('groups', distance, members)
    const truth = consensusDistance(swarm)
    let sum = 0
    for (let trial = 0; trial < 50; trial++) sum += estimateOf(swarm, members, random) ** 2
    expect(Math.abs(Math.sqrt(sum / 50) / truth - 1)).toBeLessThan(0.05)
  })

  test('equal replicas are at distance 0, within the codec’s noise', () => {
    const [replica] = driftedSwarm(0.01)
    const same = Array.from({ length: peers }, () => replica!)
    expect(estimateOf(same, 4, seededRandom('same'))).toBe(0)
  })

  test('knows what cannot be known', () => {
    const nobody = { squaredDistances: [], squaredNorm: 1, squaredError: 0 }
    expect(estimateConsensusDistance(nobody, 8)).toBeNull()
    expect(estimateConsensusDistance(nobody, 1)).toBe(0)
  })
})
