/** The outer update of one round, slice by slice, from the encoded contributions of an agreed group. */
import type { Clock } from '../clock.ts'
import { estimateConsensusDistance } from '../optim/consensus.ts'
import { outerStep, type GroupMember, type OuterState } from '../optim/outer.ts'
import { squaredDistance, sumOfSquares } from '../tensor/vector.ts'
import { decodeSlice, type Contribution } from './contribution.ts'
import type { Averaging } from './manifest.ts'
import { slicesInTurns } from './slices.ts'

export interface OuterUpdate {
  averaging: Averaging
  /** Moved in place. */
  outer: OuterState
  /** Of the peer whose outer state it is. */
  self: string
  /** Ordered by peer id; without the own one when the others agreed without it (`diloco`). */
  contributions: readonly Contribution[]
  /** Peers in the swarm, for the estimate. */
  swarm: number
}

/**
 * Combines the contributions by the manifest's rule. Everyone, the sender included, uses the de-quantised
 * pseudo-gradients in peer-id order, so that all members of a group compute the same mean bit by bit.
 *
 * Returns the estimate of the swarm's consensus distance before the update, or null when this group cannot tell.
 */
export async function applyRound(update: OuterUpdate, clock: Clock): Promise<number | null> {
  const { averaging, outer, contributions } = update
  const { parameters, momentum } = outer
  const self = Math.max(
    0,
    contributions.findIndex(({ peer }) => peer === update.self),
  )
  // NoLoCo as published weighs everyone alike.
  const tokens = contributions.map(({ header }) =>
    averaging.rule === 'noloco' ? 1 : header.weight,
  )
  const weights = clampedWeights(tokens)
  const hasParameters = averaging.rule !== 'diloco'
  const squaredDistances = contributions.map(() => 0)
  let squaredNorm = 0
  for await (const [from, to] of slicesInTurns(parameters.length, clock)) {
    const state = {
      parameters: parameters.subarray(from, to),
      momentum: momentum.subarray(from, to),
    }
    const group = contributions.map((contribution, index): GroupMember => ({
      weight: weights[index]!,
      pseudoGradient: decodeSlice(contribution, 'pseudoGradient', from),
      parameters: hasParameters ? decodeSlice(contribution, 'parameters', from) : undefined,
    }))
    squaredNorm += sumOfSquares(state.parameters)
    for (const [index, { parameters: theirs }] of group.entries()) {
      if (theirs === undefined) continue
      squaredDistances[index]! += squaredDistance(theirs, state.parameters)
    }
    outerStep(averaging, state, group, self)
  }
  if (!hasParameters) return 0
  // The distance to the own decoded parameters is what the codec does.
  const squaredError = squaredDistances[self] ?? 0
  const toOthers = squaredDistances.filter((_, index) => index !== self)
  return estimateConsensusDistance(
    { squaredDistances: toOthers, squaredNorm, squaredError },
    update.swarm,
  )
}

/**
 * Weights (tokens) held within [1/4, 2] of the group's median, so that claiming many gains little. Against the median,
 * not the own weight: all members of a group must get the same mean.
 */
export function clampedWeights(weights: readonly number[]): number[] {
  const sorted = [...weights].sort((a, b) => a - b)
  const median = sorted[Math.floor((sorted.length - 1) / 2)] ?? 1
  return weights.map((weight) => Math.min(2 * median, Math.max(median / 4, weight)))
}
