/** The outer update of one round, slice by slice, from the encoded contributions of an agreed group. */
import type { Clock } from '../clock.ts'
import { estimateConsensusDistance } from '../optim/consensus.ts'
import { nesterovStep, outerStep, type GroupMember, type OuterState } from '../optim/outer.ts'
import { addScaled, squaredDistance, sumOfSquares, type SliceRange } from '../tensor/vector.ts'
import {
  contributionPlan,
  decodeSlice,
  encodeContribution,
  plannedSlices,
  type Contribution,
} from './contribution.ts'
import type { ClipFactors } from './defence.ts'
import { errorFeedbackOf, type Averaging } from './manifest.ts'
import { slicesInTurns } from './slices.ts'

export interface OwnUpdate {
  averaging: Averaging
  /** Its residual, and with `adapt-then-combine` the rest of it, is moved in place. */
  outer: OuterState
  peer: string
  run: string
  outerStep: number
  schemaHash: string
  /** Tokens behind the pseudo-gradient. */
  weight: number
  pseudoGradient: Float32Array
  /** Hash of the outer parameters, where all peers should hold equal ones. */
  base?: string | null
  rejoins?: boolean
  /** What is exchanged; everything when left out. */
  range?: SliceRange
}

/** Outer state at a run's start: the residual is there when the manifest's averaging has error feedback. */
export function initialOuterState(averaging: Averaging, parameters: Float32Array): OuterState {
  const zeros = (): Float32Array => new Float32Array(parameters.length)
  const residual = errorFeedbackOf(averaging) > 0 ? zeros() : undefined
  return { parameters, momentum: zeros(), residual }
}

/** Whether `contributionOf` moves the outer state. */
export function contributingMoves({
  averaging,
  outer,
}: Pick<OwnUpdate, 'averaging' | 'outer'>): boolean {
  return outer.residual !== undefined || averaging.rule === 'adapt-then-combine'
}

/** What a peer brings to the round of an outer step. Throws `engine_failed` when a vector is not finite. */
export async function contributionOf(update: OwnUpdate, clock: Clock): Promise<Contribution> {
  const { averaging, outer, pseudoGradient } = update
  const { parameters, momentum, residual } = outer
  if (averaging.rule === 'adapt-then-combine') {
    for await (const [from, to] of slicesInTurns(parameters.length, clock)) {
      const state = {
        parameters: parameters.subarray(from, to),
        momentum: momentum.subarray(from, to),
      }
      nesterovStep(averaging, state, pseudoGradient.subarray(from, to))
    }
  }
  return encodeContribution(
    {
      peer: update.peer,
      run: update.run,
      key: { outerStep: update.outerStep, phase: 'outer' },
      schemaHash: update.schemaHash,
      weight: update.weight,
      base: update.base ?? null,
      rejoins: update.rejoins ?? false,
      plan: contributionPlan(averaging, 'outer', update.range ?? [0, parameters.length]),
      vectors: { pseudoGradient, parameters },
      feedback: residual && { residual, beta: errorFeedbackOf(averaging) },
    },
    clock,
  )
}

/** Gives what nobody took back to the residual: a contribution that its group agreed to leave out. */
export async function takeBack(
  { residual }: OuterState,
  contribution: Contribution,
  clock: Clock,
): Promise<void> {
  if (residual === undefined) return
  for await (const [from, to] of plannedSlices(contribution.plan, clock)) {
    addScaled(residual.subarray(from, to), decodeSlice(contribution, 'pseudoGradient', from), 1)
  }
}

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
  /** How much of what others bring counts: see `defence.ts`. */
  factors?: ReadonlyMap<string, ClipFactors> | undefined
}

/**
 * Combines the contributions of a round, the own one from `contributionOf` among them, by the manifest's rule.
 * Everyone, the sender included, uses the de-quantised pseudo-gradients in peer-id order, so that all members of a
 * group compute the same mean bit by bit.
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
  const hasPseudoGradients = averaging.rule !== 'adapt-then-combine'
  const hasParameters = averaging.rule !== 'diloco'
  const squaredDistances = contributions.map(() => 0)
  let squaredNorm = 0
  for await (const [from, to] of plannedSlices(contributions[0]?.plan ?? [], clock)) {
    const state = {
      parameters: parameters.subarray(from, to),
      momentum: momentum.subarray(from, to),
    }
    const group = contributions.map((contribution, index): GroupMember => ({
      weight: weights[index]!,
      pseudoGradient: hasPseudoGradients
        ? decodeSlice(contribution, 'pseudoGradient', from)
        : undefined,
      parameters: hasParameters ? decodeSlice(contribution, 'parameters', from) : undefined,
      pseudoGradientFactor: update.factors?.get(contribution.peer)?.pseudoGradient,
      parametersFactor: update.factors?.get(contribution.peer)?.parameters,
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
