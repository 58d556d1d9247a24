/** The swarms that the convergence bars compare. */
import { averagingSchema, type Averaging } from '../../../src/run/manifest.ts'
import type { Method } from './simulation.ts'
import type { SwarmCase } from './simulation-pool.ts'

/** Outer steps of H = 20: 1000 and 2000 inner steps. */
export const SHORT = 50
export const LONG = 100
export const QUICK = 25

/** The product's default, as the bars ask for it: eta 0.7, mu 0.8, int4 pseudo-gradients and int8 weights. */
export const gossipOf = (
  groupSize: number,
  codecs: Partial<Averaging> = {},
): Extract<Method, { kind: 'averaging' }> => ({
  kind: 'averaging',
  averaging: averagingSchema.parse({ groupSize, ...codecs }),
})
/** With int4 pseudo-gradients, as the product's default. */
const allReduceOf = (settings: Partial<Averaging>): ReturnType<typeof gossipOf> =>
  gossipOf(0, { rule: 'diloco', ...settings })
export const EXACT = { pseudoGradientCodec: 'fp32', parametersCodec: 'fp32' } as const
export const allReduceMethod: Method = {
  kind: 'averaging',
  averaging: averagingSchema.parse({ rule: 'diloco', ...EXACT }),
}

const caseOf = (what: string, method: Method, peers: number, outerSteps: number): SwarmCase => ({
  name: `${what}, N = ${peers}, ${outerSteps} outer steps`,
  method,
  peers,
  outerSteps,
})
export const groupName = (groupSize: number): string =>
  groupSize === 2 ? 'gossip in pairs' : `gossip in groups of ${groupSize}`
export const gossip = (peers: number, groupSize: number, outerSteps: number): SwarmCase =>
  caseOf(groupName(groupSize), gossipOf(groupSize), peers, outerSteps)
export const exactGossip = (peers: number, groupSize: number, outerSteps: number): SwarmCase =>
  caseOf(`${groupName(groupSize)}, fp32`, gossipOf(groupSize, EXACT), peers, outerSteps)
export const allReduce = (peers: number, outerSteps: number): SwarmCase =>
  caseOf('all-reduce DiLoCo', allReduceMethod, peers, outerSteps)
export const dataParallel = (peers: number, outerSteps: number): SwarmCase =>
  caseOf('data parallel', { kind: 'data-parallel' }, peers, outerSteps)
export const alone = (peers: number, outerSteps: number): SwarmCase =>
  caseOf('alone', { kind: 'alone' }, peers, outerSteps)

/** Exchange beside training; `overlapSteps` of the 20 inner steps. */
export const overlapping = (
  rule: 'gossip-diloco' | 'diloco',
  peers: number,
  overlapSteps: number,
): SwarmCase => {
  const plain = rule === 'diloco' ? allReduceOf({}) : gossipOf(4)
  const averaging = averagingSchema.parse({ ...plain.averaging, overlapSteps })
  const name = rule === 'diloco' ? 'all-reduce' : groupName(4)
  const what = overlapSteps === 0 ? name : `${name}, ${overlapSteps} of 20 steps overlap`
  return caseOf(what, { kind: 'averaging', averaging }, peers, SHORT)
}
/** All-reduce in fragments, each exchanged after 20 inner steps. */
export const streaming = (peers: number, fragments: number, overlapSteps: number): SwarmCase => {
  const overlap = overlapSteps === 0 ? '' : `, ${overlapSteps} steps overlap`
  const what = `all-reduce in ${fragments} fragments${overlap}`
  const method = allReduceOf({ fragments, overlapSteps })
  return { ...caseOf(what, method, peers, SHORT * fragments), innerSteps: 20 / fragments }
}

/** Failing peers, and peers that see one topic each; the group size is the product's own choice for N. */
export interface Adversity {
  /** Probability that a peer fails in a round. */
  churn: number
  sharded: boolean
}
export const adverse = (
  peers: number,
  outerSteps: number,
  { churn, sharded }: Adversity,
): SwarmCase => {
  const plain = gossip(peers, peers < 8 ? 2 : 4, outerSteps)
  const what = [
    ...(sharded ? ['one topic each'] : []),
    ...(churn > 0 ? [`churn ${100 * churn} %`] : []),
  ]
  return { ...plain, name: [plain.name, ...what].join(', '), churn, sharded }
}

/** Gossip with or without defence, among honest peers or with liars: a share of the peers, and how loud they are. */
export const attacked = (
  peers: number,
  defence: 'none' | 'robust',
  attackers?: { share: number; scale: number },
): SwarmCase => {
  const what = [
    groupName(4),
    ...(defence === 'none' ? [] : ['robust']),
    ...(attackers ? [`${100 * attackers.share} % flip the sign x${attackers.scale}`] : []),
  ]
  const swarm = caseOf(what.join(', '), gossipOf(4, { defence }), peers, SHORT)
  return attackers === undefined ? swarm : { ...swarm, attackers }
}
