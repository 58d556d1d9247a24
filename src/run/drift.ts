/**
 * A gossip peer whose outer parameters have gone far from those of its group (a fault of its disk or engine, data that is
 * none, a momentum that ran away) does not step from there: it takes the mean of the group over, without momentum.
 *
 * Healthy swarms lie within 1 to 5 % of the parameters' norm.
 */
import type { Clock } from '../clock.ts'
import { weightedMean } from '../optim/combine.ts'
import type { OuterState } from '../optim/outer.ts'
import { squaredDistance, sumOfSquares } from '../tensor/vector.ts'
import { decodeSlice, plannedSlices, type Contribution } from './contribution.ts'
import { lowerMedian } from './pace.ts'

/** Of the parameters' norm: so far away is too far, whatever the others are. */
const DRIFT_MAX = 0.25
/** So far away is too far where the others are this many times closer to one another. */
const DRIFT_SUSPECT = 0.05
const DRIFT_FACTOR = 5

export interface Drift {
  /** From the mean of the others, as a share of its norm. */
  own: number
  /** The median of the others, from the same mean; 0 where there is only one. */
  others: number
}

/** Of `self` in its group, from what has been sent: the codec errs alike for all. */
export async function driftOf(
  contributions: readonly Contribution[],
  self: string,
  clock: Clock,
): Promise<Drift> {
  const squares = contributions.map(() => 0)
  let squaredNorm = 0
  const [first] = contributions
  const parts = first?.plan.filter(({ part }) => part === 'parameters') ?? []
  for await (const [from] of plannedSlices(parts, clock)) {
    const slices = contributions.map((each) => decodeSlice(each, 'parameters', from))
    const mean = weightedMean(slices.filter((_, index) => contributions[index]?.peer !== self))
    squaredNorm += sumOfSquares(mean)
    for (const [index, slice] of slices.entries()) squares[index]! += squaredDistance(slice, mean)
  }
  const distances = squares.map((square) => Math.sqrt(square / Math.max(squaredNorm, 1e-30)))
  const own = contributions.findIndex(({ peer }) => peer === self)
  return {
    own: distances[own] ?? 0,
    others: lowerMedian(distances.filter((_, index) => index !== own)),
  }
}

export function isTooFar({ own, others }: Drift): boolean {
  if (own > DRIFT_MAX) return true
  return others > 0 && own > DRIFT_SUSPECT && own > DRIFT_FACTOR * others
}

/** Takes the mean of the group, the own parameters among it, over; in place. */
export async function adoptMean(
  { parameters, momentum, residual }: OuterState,
  contributions: readonly Contribution[],
  clock: Clock,
): Promise<void> {
  const [first] = contributions
  const parts = first?.plan.filter(({ part }) => part === 'parameters') ?? []
  for await (const [from, to] of plannedSlices(parts, clock)) {
    const slices = contributions.map((each) => decodeSlice(each, 'parameters', from))
    weightedMean(slices, undefined, parameters.subarray(from, to))
  }
  momentum.fill(0)
  residual?.fill(0)
}
