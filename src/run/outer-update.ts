/** The outer update of one round, slice by slice, from the encoded contributions of an agreed group. */
import { estimateConsensusDistance, spreadOf, type Spread } from '../optim/consensus.ts'
import { outerStep, type GroupMember } from '../optim/outer.ts'
import { squaredDistance } from '../tensor/vector.ts'
import { decodeSlice, type Contribution } from './contribution.ts'
import type { ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'

/**
 * Moves parameters and momentum in place. `contributions` are ordered by peer id; everyone, the sender included, uses
 * the de-quantised pseudo-gradients, so that all members of a group compute the same mean bit by bit.
 *
 * Returns the estimate of the swarm's consensus distance before the update, or null when this group cannot tell.
 */
export async function applyRound(
  run: ReadyRun,
  own: Contribution,
  contributions: readonly Contribution[],
): Promise<number | null> {
  const { averaging } = run.manifest
  const { parameters, momentum } = run.outer
  const self = Math.max(
    0,
    contributions.findIndex(({ peer }) => peer === own.peer),
  )
  const weights = clampedWeights(contributions.map(({ header }) => header.weight))
  const hasParameters = averaging.rule !== 'diloco'
  const spread: Spread = { squaredDeviation: 0, squaredNorm: 0 }
  let squaredError = 0
  for await (const [from, to] of slicesInTurns(run.elements, run.clock)) {
    const state = {
      parameters: parameters.subarray(from, to),
      momentum: momentum.subarray(from, to),
    }
    const group = contributions.map((contribution, index): GroupMember => ({
      weight: weights[index] ?? 0,
      pseudoGradient: decodeSlice(contribution, 'pseudoGradient', from),
      parameters: hasParameters ? decodeSlice(contribution, 'parameters', from) : undefined,
    }))
    if (hasParameters && group.length > 1) {
      const replicas = group.flatMap((member) =>
        member.parameters === undefined ? [] : [member.parameters],
      )
      const slice = spreadOf(replicas)
      spread.squaredDeviation += slice.squaredDeviation
      spread.squaredNorm += slice.squaredNorm
      squaredError += squaredDistance(replicas[self] ?? state.parameters, state.parameters)
    }
    outerStep(averaging, state, group, self)
  }
  if (!hasParameters) return 0
  return estimateConsensusDistance(
    spread,
    contributions.length,
    run.membership.trainers(run.progress.outerStep).length + 1,
    squaredError,
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
