/**
 * How fast a swarm that only averages comes to agree: the product's partner choice and outer step, on random
 * replicas, with pseudo-gradients of zero.
 */
import { consensusDistance } from '../../../src/optim/consensus.ts'
import { outerStep, type OuterSettings, type OuterState } from '../../../src/optim/outer.ts'
import { seededRandom } from '../../../src/random.ts'
import { groupsOf } from '../../../src/run/partners.ts'
import { peerNames } from './simulation.ts'

export interface ConsensusTrials {
  /** Mean over the trials of what one round leaves of the squared consensus distance. */
  contraction: number
  /** Share of the first consensus distance that is left after `rounds`: root mean square over the trials … */
  driftLeft: number
  /** … and the largest. */
  worstDriftLeft: number
}

const ELEMENTS = 256
/** Replicas of a healthy run: 2 % of the norm apart. */
const DRIFT = 0.02
const SETTINGS: OuterSettings = {
  rule: 'gossip-diloco',
  learningRate: 0.7,
  momentum: 0.8,
  consensus: 0.7,
}

/** Trials are seeded by their number: the same on every machine. */
export function consensusTrials(
  trials: number,
  peers: number,
  groupSize: number,
  rounds: number,
): ConsensusTrials {
  let contraction = 0
  let squaredDriftLeft = 0
  let worstDriftLeft = 0
  for (let trial = 0; trial < trials; trial++) {
    const replicas = randomReplicas(trial, peers)
    const start = consensusDistance(replicas)
    const names = peerNames(peers)
    let states: OuterState[] = replicas.map((parameters) => ({
      parameters,
      momentum: new Float32Array(ELEMENTS),
    }))
    for (let round = 0; round < rounds; round++) {
      states = averageOnce(states, groupsOf(`trial ${trial}`, round, names, groupSize), names)
      const left = consensusDistance(states.map(({ parameters }) => parameters)) / start
      if (round === 0) contraction += left ** 2 / trials
      if (round < rounds - 1) continue
      squaredDriftLeft += left ** 2 / trials
      worstDriftLeft = Math.max(worstDriftLeft, left)
    }
  }
  return { contraction, driftLeft: Math.sqrt(squaredDriftLeft), worstDriftLeft }
}

function randomReplicas(trial: number, peers: number): Float32Array[] {
  const random = seededRandom('consensus trial', trial, peers)
  const center = Float32Array.from({ length: ELEMENTS }, () => random.normal())
  return Array.from({ length: peers }, () => center.map((value) => value + DRIFT * random.normal()))
}

function averageOnce(
  states: readonly OuterState[],
  groups: readonly string[][],
  names: readonly string[],
): OuterState[] {
  return states.map(({ parameters, momentum }, index) => {
    const name = names[index] ?? ''
    const group = (groups.find((members) => members.includes(name)) ?? [name]).toSorted()
    const moved = { parameters: parameters.slice(), momentum: momentum.slice() }
    const members = group.map((member) => ({
      weight: 1,
      pseudoGradient: new Float32Array(ELEMENTS),
      parameters: states[names.indexOf(member)]!.parameters,
    }))
    outerStep(SETTINGS, moved, members, group.indexOf(name))
    return moved
  })
}
