/**
 * How the vectors of a group combine into one. Pure functions; sums in float64 in the order given, results rounded to
 * float32, so that all who combine the same vectors in the same order get the same bits.
 *
 * `weightedMean`, `coordinateMedian` and `trimmedMean` work on slices as on whole vectors. Whatever clips by an L2
 * norm needs that norm of the whole vectors: `clipFactor` makes the number that slices can then share.
 */
import { ShoalError } from '../errors.ts'
import { addScaled, norm, requireEqualLengths, scaleInPlace, subtract } from '../tensor/vector.ts'

/** Weights that sum to 1; equal ones when all are zero. */
export function normalizedWeights(weights: readonly number[]): number[] {
  const sum = weights.reduce((total, weight) => total + weight, 0)
  return weights.map((weight) => (sum === 0 ? 1 / weights.length : weight / sum))
}

/** Mean by weights of any scale (tokens), equal when left out. */
export function weightedMean(
  vectors: readonly Float32Array[],
  weights: readonly number[] = vectors.map(() => 1),
  target: Float32Array = new Float32Array(elementsOf(vectors)),
): Float32Array {
  for (const vector of vectors) requireEqualLengths(vector, target)
  const shares = normalizedWeights(weights)
  const sums = new Float64Array(target.length)
  for (const [j, vector] of vectors.entries()) {
    const share = shares[j]!
    for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + share * vector[i]!
  }
  target.set(sums)
  return target
}

/** Median of every coordinate; of an even number the mean of the two in the middle. */
export function coordinateMedian(vectors: readonly Float32Array[]): Float32Array {
  return trimmedMean(vectors, Math.floor((vectors.length - 1) / 2))
}

/** Mean of every coordinate without its `trim` smallest and `trim` largest values. */
export function trimmedMean(vectors: readonly Float32Array[], trim: number): Float32Array {
  const count = vectors.length
  const kept = count - 2 * trim
  if (trim < 0 || kept < 1) {
    throw new ShoalError('internal', `cannot trim ${trim} of ${count} vectors on either side`)
  }
  const mean = new Float32Array(elementsOf(vectors))
  for (const vector of vectors) requireEqualLengths(vector, mean)
  const column = new Float64Array(count)
  for (let i = 0; i < mean.length; i++) {
    // Insertion sort: groups are small, and a call of sort() per coordinate costs ten times as much.
    for (let j = 0; j < count; j++) {
      const value = vectors[j]![i]!
      let place = j
      for (; place > 0 && column[place - 1]! > value; place--) column[place] = column[place - 1]!
      column[place] = value
    }
    let sum = 0
    for (let j = trim; j < count - trim; j++) sum += column[j]!
    mean[i] = sum / kept
  }
  return mean
}

/** What scales a vector of this L2 norm into the ball of `radius`; 1 when it lies inside. */
export function clipFactor(vectorNorm: number, radius: number): number {
  return vectorNorm <= radius || vectorNorm === 0 ? 1 : Math.fround(radius / vectorNorm)
}

/** The vector scaled into the ball of `radius`. */
export function clipL2(vector: Float32Array, radius: number): Float32Array {
  const clipped = new Float32Array(vector)
  scaleInPlace(clipped, clipFactor(norm(vector), radius))
  return clipped
}

/** `center + mean of clip(vector - center)`, repeated (Karimireddy et al. 2021, arXiv 2012.10333). Whole vectors. */
export function centeredClip(
  vectors: readonly Float32Array[],
  center: Float32Array,
  radius: number,
  iterations = 1,
): Float32Array {
  const current = new Float32Array(center)
  for (let iteration = 0; iteration < iterations; iteration++) {
    const steps = vectors.map((vector) => clipL2(subtract(vector, current), radius))
    addScaled(current, weightedMean(steps), 1)
  }
  return current
}

/**
 * ClippedGossip: `sum of weight * (own + clip(neighbour - own))`, own weight included in the sum of 1 (He,
 * Karimireddy, Jaggi 2022, arXiv 2202.01545). Whole vectors.
 */
export function clippedGossip(
  own: Float32Array,
  neighbours: readonly Float32Array[],
  weights: { own: number; neighbours: readonly number[] },
  radius: number,
): Float32Array {
  const ownWeight = Math.fround(weights.own)
  const sums = new Float64Array(own)
  for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! * ownWeight
  for (const [j, neighbour] of neighbours.entries()) {
    const weight = weights.neighbours[j] ?? 0
    const difference = clipL2(subtract(neighbour, own), radius)
    for (let i = 0; i < sums.length; i++) {
      sums[i] = sums[i]! + weight * Math.fround(own[i]! + difference[i]!)
    }
  }
  return new Float32Array(sums)
}

function elementsOf(vectors: readonly Float32Array[]): number {
  const [first] = vectors
  if (first === undefined) throw new ShoalError('internal', 'there are no vectors to combine')
  return first.length
}
