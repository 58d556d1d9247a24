/** Bars, and the comparison of two swarms that most of them are. */
import type { Finding } from '../finding.ts'
import type { SimulationFigures } from './simulation.ts'
import type { SimulationPool, SwarmCase } from './simulation-pool.ts'

export interface Bar {
  id: string
  measure(pool: SimulationPool): Promise<Finding[]>
}

type Figure = keyof Pick<SimulationFigures, 'merged' | 'replicaMean' | 'replicaWorst' | 'drift'>

/** Mean over the seeds. */
export async function meanOf(
  pool: SimulationPool,
  swarm: SwarmCase,
  figure: Figure,
): Promise<number> {
  const figures = await pool.figures(swarm)
  return figures.reduce((sum, each) => sum + each[figure], 0) / figures.length
}

export interface Comparison {
  bar: string
  swarm: SwarmCase
  against: SwarmCase
  /** What the other is called; its name when left out. */
  over?: string
  limit: number
}

/** By how much the merged model's loss exceeds another's. */
export async function excess(pool: SimulationPool, comparison: Comparison): Promise<Finding> {
  const { bar, swarm, against, limit, over } = comparison
  const [loss, reference] = await Promise.all([
    meanOf(pool, swarm, 'merged'),
    meanOf(pool, against, 'merged'),
  ])
  const figure = loss / reference - 1
  const what = over ?? against.name.replace(/, N = .*/, '')
  const configuration = `${swarm.name}: loss over ${what}`
  return { bar, configuration, figure, relation: '<=', limit, unit: 'excess' }
}
