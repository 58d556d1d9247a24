/**
 * How far the peers' outer parameters have drifted apart.
 *
 * The measure is the rms distance of the replicas to their mean, as a share of the mean's norm: healthy runs lie at
 * 0.005 to 0.05.
 */

/** Sums over elements; over slices of the same replicas they add up. */
export interface Spread {
  /** Squared distances of the replicas to their mean. */
  squaredDeviation: number
  /** Squared norm of the mean. */
  squaredNorm: number
}

export function spreadOf(replicas: readonly Float32Array[]): Spread {
  const count = replicas.length
  const means = new Float64Array(replicas[0]?.length ?? 0)
  for (const replica of replicas) {
    for (let i = 0; i < means.length; i++) means[i] = means[i]! + replica[i]!
  }
  let squaredNorm = 0
  for (let i = 0; i < means.length; i++) {
    means[i] = means[i]! / count
    squaredNorm += means[i]! * means[i]!
  }
  let squaredDeviation = 0
  for (const replica of replicas) {
    for (let i = 0; i < means.length; i++) {
      const deviation = replica[i]! - means[i]!
      squaredDeviation += deviation * deviation
    }
  }
  return { squaredDeviation, squaredNorm }
}

/** Consensus distance of a swarm whose replicas are all here. */
export function consensusDistance(replicas: readonly Float32Array[]): number {
  const { squaredDeviation, squaredNorm } = spreadOf(replicas)
  return relative(squaredDeviation / replicas.length, squaredNorm)
}

/**
 * Estimate of the consensus distance of a swarm of `swarm` peers from `members` of them, drawn at random, before they
 * average: the unbiased variance of a sample of a finite population. 0 for a swarm of one; null when a lone member of
 * a larger swarm cannot know.
 *
 * When the spread is that of replicas as a codec gives them back, `squaredError` is the squared distance the codec put
 * between the own exact and decoded parameters. It is taken off again: int8 alone puts 0.003 to 0.01 between replicas.
 */
export function estimateConsensusDistance(
  { squaredDeviation, squaredNorm }: Spread,
  members: number,
  swarm: number,
  squaredError = 0,
): number | null {
  if (swarm <= 1) return 0
  if (members <= 1) return null
  const sampleVariance = squaredDeviation / (members - 1) - squaredError
  return relative((Math.max(0, sampleVariance) * (swarm - 1)) / swarm, squaredNorm)
}

function relative(variance: number, squaredNorm: number): number {
  return squaredNorm === 0 ? 0 : Math.sqrt(variance / squaredNorm)
}

/**
 * What one round of averaging in random disjoint groups leaves of the squared consensus distance, on average:
 * 1 - (n-1)N / (n(N-1)).
 */
export function expectedContraction(swarm: number, group: number): number {
  if (swarm <= 1) return 0
  const members = Math.min(group, swarm)
  return 1 - ((members - 1) * swarm) / (members * (swarm - 1))
}
