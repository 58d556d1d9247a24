/**
 * What a swarm's training must reach, each bar with the simulations it needs. The numbers B2 to B10 are those of the
 * bars in the project's research on algorithms; `issue` are the bars of the issue that asked for the swarm.
 */
import { ShoalError } from '../../../src/errors.ts'
import { expectedContraction } from '../../../src/optim/consensus.ts'
import { consensusTrials } from './consensus-trials.ts'
import {
  allReduce,
  alone,
  dataParallel,
  exactGossip,
  gossip,
  groupName,
  LONG,
  QUICK,
  SHORT,
} from './cases.ts'
import { exactness } from './exactness.ts'
import type { Finding } from '../finding.ts'
import { churnBars } from './churn-bars.ts'
import { overlapBars } from './overlap-bars.ts'
import { defenceBars } from './defence-bars.ts'
import { excess, meanOf, type Bar } from './comparison.ts'
import type { SimulationPool, SwarmCase } from './simulation-pool.ts'

interface Target {
  peers: number
  groupSize: number
  limit: number
}

const overDataParallel =
  (bar: string, outerSteps: number, targets: readonly Target[]) =>
  (pool: SimulationPool): Promise<Finding[]> =>
    Promise.all(
      targets.map(({ peers, groupSize, limit }) => {
        const swarm = gossip(peers, groupSize, outerSteps)
        return excess(pool, { bar, swarm, against: dataParallel(peers, outerSteps), limit })
      }),
    )

const overAllReduce =
  (bar: string, targets: readonly Target[]) =>
  (pool: SimulationPool): Promise<Finding[]> =>
    Promise.all(
      targets.map(({ peers, groupSize, limit }) => {
        const swarm = gossip(peers, groupSize, SHORT)
        return excess(pool, { bar, swarm, against: allReduce(peers, SHORT), limit })
      }),
    )

interface GapTarget extends Target {
  outerSteps: number
}

const recovered =
  (targets: readonly GapTarget[]) =>
  (pool: SimulationPool): Promise<Finding[]> =>
    Promise.all(targets.map((target) => recoveredShare(pool, target)))

/** How much of the way from training alone to data parallel the swarm goes. */
async function recoveredShare(pool: SimulationPool, target: GapTarget): Promise<Finding> {
  const { peers, groupSize, outerSteps, limit } = target
  const swarm = gossip(peers, groupSize, outerSteps)
  const [merged, solo, best] = await Promise.all([
    meanOf(pool, swarm, 'merged'),
    meanOf(pool, alone(8, outerSteps), 'replicaMean'),
    meanOf(pool, dataParallel(peers, outerSteps), 'merged'),
  ])
  return {
    bar: 'B3c',
    configuration: `${swarm.name}: share of the gap from alone to data parallel`,
    figure: (solo - merged) / (solo - best),
    relation: '>=',
    limit,
    unit: 'share',
  }
}

const agreements =
  (swarms: readonly Omit<Target, 'limit'>[]) =>
  async (pool: SimulationPool): Promise<Finding[]> => {
    const findings = swarms.map(({ peers, groupSize }) =>
      agreement(pool, gossip(peers, groupSize, SHORT)),
    )
    return (await Promise.all(findings)).flat()
  }

/** How alike the replicas are. */
async function agreement(pool: SimulationPool, swarm: SwarmCase): Promise<Finding[]> {
  const [merged, mean, worst, drift] = await Promise.all([
    meanOf(pool, swarm, 'merged'),
    meanOf(pool, swarm, 'replicaMean'),
    meanOf(pool, swarm, 'replicaWorst'),
    meanOf(pool, swarm, 'drift'),
  ])
  const finding = { bar: 'B4', relation: '<=' } as const
  return [
    {
      ...finding,
      configuration: `${swarm.name}: mean replica over merged`,
      figure: mean / merged - 1,
      limit: 0.03,
      unit: 'excess',
    },
    {
      ...finding,
      configuration: `${swarm.name}: worst replica over mean`,
      figure: worst / mean - 1,
      limit: 0.02,
      unit: 'excess',
    },
    {
      ...finding,
      configuration: `${swarm.name}: consensus distance`,
      figure: drift,
      limit: 0.03,
      unit: 'distance',
    },
  ]
}

async function compression(pool: SimulationPool): Promise<Finding[]> {
  const swarm = gossip(8, 4, SHORT)
  return Promise.all([
    excess(pool, { bar: 'B5', swarm, against: exactGossip(8, 4, SHORT), limit: 0.01 }),
    messageSize(pool, swarm),
  ])
}

async function messageSize(pool: SimulationPool, swarm: SwarmCase): Promise<Finding> {
  const [figures] = await pool.figures(swarm)
  if (figures === undefined) throw new ShoalError('internal', 'a simulation ran for no seed')
  return {
    bar: 'B5',
    configuration: `${swarm.name}: one message of ${figures.parameters} parameters`,
    figure: figures.messageBytes,
    relation: '<=',
    limit: 1.6 * figures.parameters + 1000,
    unit: 'bytes',
  }
}

/** The mean of models that never talked must be worse than each: else the other bars prove nothing. */
async function sanity(pool: SimulationPool): Promise<Finding[]> {
  const swarm = alone(8, SHORT)
  const [merged, solo] = await Promise.all([
    meanOf(pool, swarm, 'merged'),
    meanOf(pool, swarm, 'replicaMean'),
  ])
  return [
    {
      bar: 'B8',
      configuration: `${swarm.name}: mean of the replicas over a replica`,
      figure: merged / solo - 1,
      relation: '>=',
      limit: 0,
      unit: 'excess',
    },
  ]
}

/** What a minute can show: the swarm's model is better than one trained alone, and the messages are small. */
function directionBars(): Bar[] {
  const swarm = gossip(4, 2, QUICK)
  const direction = async (pool: SimulationPool): Promise<Finding[]> => {
    const [merged, solo] = await Promise.all([
      meanOf(pool, swarm, 'merged'),
      meanOf(pool, alone(4, QUICK), 'replicaMean'),
    ])
    return [
      {
        bar: 'B3',
        configuration: `${swarm.name}: loss over alone`,
        figure: merged / solo - 1,
        relation: '<=',
        limit: 0,
        unit: 'excess',
      },
    ]
  }
  return [
    { id: 'B3', measure: direction },
    { id: 'B5', measure: async (pool) => [await messageSize(pool, swarm)] },
  ]
}

const TRIALS = 200

/** Averaging without training: the drift falls as the theory of random groups says. */
function consensus(): Promise<Finding[]> {
  const findings = [
    [8, 2],
    [8, 4],
    [16, 2],
    [16, 4],
  ].flatMap(([peers = 0, groupSize = 0]): Finding[] => {
    const rounds = Math.ceil(Math.log2(peers)) + 4
    const { contraction, driftLeft } = consensusTrials(TRIALS, peers, groupSize, rounds)
    const expected = expectedContraction(peers, groupSize)
    const what = `${TRIALS} trials of ${groupName(groupSize)}, N = ${peers}`
    const finding = { bar: 'B10', relation: '<=' } as const
    const deviation: Finding = {
      ...finding,
      configuration: `${what}: contraction ${contraction.toFixed(4)} against ${expected.toFixed(4)}`,
      figure: Math.abs(contraction / expected - 1),
      limit: 0.15,
      unit: 'share',
    }
    if (groupSize < 4) return [deviation]
    return [
      deviation,
      {
        ...finding,
        configuration: `${what}: drift left after ${rounds} rounds`,
        figure: driftLeft,
        limit: 0.01,
        unit: 'share',
      },
    ]
  })
  return Promise.resolve(findings)
}

/** `more`: what is not in the default scope, for itself. */
export type Scope = 'quick' | 'default' | 'full' | 'more'

/** The bars of a scope. The pool runs simulations in the order in which bars ask for them: the longest first. */
export function barsOf(scope: Scope): Bar[] {
  const exact: Bar = { id: 'B2', measure: exactness }
  const agreeing: Bar = { id: 'B10', measure: consensus }
  if (scope === 'quick') return [exact, ...directionBars(), agreeing]
  const more = [...churnBars(), ...overlapBars(), ...defenceBars()]
  if (scope === 'more') return more
  const inFull = <T>(...targets: T[]): T[] => (scope === 'full' ? targets : [])
  const pairsOf4 = { peers: 4, groupSize: 2 }
  const pairsOf8 = { peers: 8, groupSize: 2 }
  const foursOf8 = { peers: 8, groupSize: 4 }
  const foursOf16 = { peers: 16, groupSize: 4 }
  return [
    {
      id: 'B3a',
      measure: overDataParallel('B3a', LONG, [
        ...inFull({ ...foursOf16, limit: 0.12 }),
        { ...foursOf8, limit: 0.09 },
        { ...pairsOf4, limit: 0.08 },
      ]),
    },
    {
      id: 'B3b',
      measure: overDataParallel('B3b', SHORT, [
        { ...foursOf16, limit: 0.24 },
        { ...foursOf8, limit: 0.22 },
        { ...pairsOf4, limit: 0.2 },
      ]),
    },
    {
      id: 'B3c',
      measure: recovered([
        ...inFull({ ...foursOf16, outerSteps: LONG, limit: 0.65 }),
        { ...foursOf8, outerSteps: LONG, limit: 0.65 },
        { ...pairsOf4, outerSteps: LONG, limit: 0.65 },
        { ...foursOf16, outerSteps: SHORT, limit: 0.55 },
        { ...foursOf8, outerSteps: SHORT, limit: 0.55 },
        { ...pairsOf4, outerSteps: SHORT, limit: 0.55 },
      ]),
    },
    {
      id: 'B3d',
      measure: overAllReduce('B3d', [
        ...inFull({ peers: 16, groupSize: 2, limit: 0.12 }),
        { ...foursOf16, limit: 0.04 },
        { ...foursOf8, limit: 0.04 },
        { ...pairsOf8, limit: 0.12 },
        { ...pairsOf4, limit: 0.12 },
      ]),
    },
    {
      id: 'issue',
      measure: overAllReduce('issue', [
        { ...foursOf8, limit: 0.04 },
        { ...pairsOf8, limit: 0.1 },
      ]),
    },
    { id: 'B4', measure: agreements([foursOf16, foursOf8, pairsOf8, pairsOf4]) },
    { id: 'B5', measure: compression },
    { id: 'B8', measure: sanity },
    exact,
    agreeing,
    ...(scope === 'full' ? more : []),
  ]
}
