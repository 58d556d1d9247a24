/** The product's outer step in the two limits where it is something known, and against itself. */
import { averagingSchema } from '../../../src/run/manifest.ts'
import { distance, norm } from '../../../src/tensor/vector.ts'
import { allReduceMethod, EXACT, gossipOf } from './cases.ts'
import type { Finding } from '../finding.ts'
import { simulate, type Method } from './simulation.ts'
import type { SimulationPool } from './simulation-pool.ts'
import { singleProcessDiloco } from './single-process-diloco.ts'

/** Equality with DiLoCo as the paper has it, and with itself. */
export async function exactness(pool: SimulationPool): Promise<Finding[]> {
  const outerSteps = 5
  const seed = 'exactness'
  const { learningRate, momentum } = averagingSchema.parse({})
  const replicasOf = (method: Method, peers: number): Promise<Float32Array[]> =>
    pool.withEngine(async (engine, signal) => {
      const simulated = { method, peers, outerSteps, seed }
      return (await simulate(engine, pool.setup, simulated, { signal })).replicas
    })
  const referenceOf = (workers: number): Promise<Float32Array> =>
    pool.withEngine((engine, signal) => {
      const simulated = { workers, outerSteps, seed, learningRate, momentum }
      return singleProcessDiloco(engine, pool.setup, simulated, signal)
    })
  const [whole, reduced, reference, single, snoo, first, second] = await Promise.all([
    replicasOf(gossipOf(8, EXACT), 8),
    replicasOf(allReduceMethod, 8),
    referenceOf(8),
    replicasOf(gossipOf(2, EXACT), 1),
    referenceOf(1),
    replicasOf(gossipOf(2), 4),
    replicasOf(gossipOf(2), 4),
  ])
  const equality = (configuration: string, replicas: Float32Array[], to: Float32Array) => ({
    bar: 'B2',
    configuration: `${configuration}, fp32, ${outerSteps} outer steps: relative distance`,
    figure: Math.max(...replicas.map((replica) => distance(replica, to) / norm(to))),
    relation: '<=' as const,
    limit: 1e-5,
    unit: 'error' as const,
  })
  return [
    equality('gossip in one group of N = 8 = single-process DiLoCo', whole, reference),
    equality('all-reduce DiLoCo of N = 8 = single-process DiLoCo', reduced, reference),
    equality('gossip of N = 1 = SNOO', single, snoo),
    {
      bar: 'B2',
      configuration: 'gossip in pairs, N = 4: bits that differ between two runs of one seed',
      figure: differingBits(first, second),
      relation: '<=',
      limit: 0,
      unit: 'count',
    },
  ]
}

function differingBits(first: readonly Float32Array[], second: readonly Float32Array[]): number {
  let bits = 0
  for (const [index, replica] of first.entries()) {
    const other = second[index] ?? new Float32Array(replica.length)
    const a = new Uint32Array(replica.buffer, replica.byteOffset, replica.length)
    const b = new Uint32Array(other.buffer, other.byteOffset, other.length)
    for (let i = 0; i < a.length; i++) {
      for (let left = a[i]! ^ b[i]!; left !== 0; left &= left - 1) bits++
    }
  }
  return bits
}
