/**
 * How far the peers' outer parameters have drifted apart.
 *
 * The measure is the rms distance of the replicas to their mean, as a share of the mean's norm: healthy runs lie at
 * 0.005 to 0.05.
 */

/** Consensus distance of a swarm whose replicas are all here. */
export function consensusDistance(replicas: readonly Float32Array[]): number {
  const means = new Float64Array(replicas[0]?.length ?? 0)
  for (const replica of replicas) {
    for (let i = 0; i < means.length; i++) means[i] = means[i]! + replica[i]! / replicas.length
  }
  let squaredNorm = 0
  for (let i = 0; i < means.length; i++) squaredNorm += means[i]! * means[i]!
  let squaredDeviation = 0
  for (const replica of replicas) {
    for (let i = 0; i < means.length; i++) {
      const deviation = replica[i]! - means[i]!
      squaredDeviation += deviation * deviation
    }
  }
  return relative(squaredDeviation / replicas.length, squaredNorm)
}

/** What a peer knows of its group before the group averages. Sums over elements: slices add up. */
export interface GroupDistances {
  /** From the own exact outer parameters to those of every other member, as received. */
  squaredDistances: readonly number[]
  /** Of the own outer parameters. */
  squaredNorm: number
  /** Between the own outer parameters and what the codec makes of them, decoded. */
  squaredError: number
}

/**
 * Estimate of the consensus distance of a swarm of `swarm` peers from one random group, before that averages. 0 for a
 * swarm of one; null when a lone peer of a larger swarm cannot know.
 *
 * Two peers are, in squares, 2N/(N-1) times as far from one another as from the mean. The codec's error comes on top
 * and is taken off (int8 alone puts 0.003 to 0.01 between equal replicas). It is independent of the distance only
 * because one end is exact: two decoded vectors that are closer than a step of the codec err alike.
 */
export function estimateConsensusDistance(
  { squaredDistances, squaredNorm, squaredError }: GroupDistances,
  swarm: number,
): number | null {
  if (swarm <= 1) return 0
  if (squaredDistances.length === 0) return null
  const sum = squaredDistances.reduce((total, squared) => total + squared - squaredError, 0)
  const squaredDistance = Math.max(0, sum / squaredDistances.length)
  return relative((squaredDistance * (swarm - 1)) / (2 * swarm), squaredNorm)
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

function relative(variance: number, squaredNorm: number): number {
  return squaredNorm === 0 ? 0 : Math.sqrt(variance / squaredNorm)
}
