/** What liars cost with and without defence, and what the defence costs without liars: the bar B7. */
import { asFault } from '../../../src/errors.ts'
import { excess, meanOf, type Bar } from './comparison.ts'
import { attacked } from './cases.ts'
import type { Finding } from '../finding.ts'
import type { SimulationPool } from './simulation-pool.ts'

const PEERS = 16
const LIARS = { share: 0.3, scale: 5 }

export function defenceBars(): Bar[] {
  return [{ id: 'B7', measure: defenceCost }]
}

async function defenceCost(pool: SimulationPool): Promise<Finding[]> {
  const clean = attacked(PEERS, 'none')
  const robust = attacked(PEERS, 'robust', LIARS)
  const bare = attacked(PEERS, 'none', LIARS)
  const [lossClean, worst, lossBare] = await Promise.all([
    meanOf(pool, clean, 'merged'),
    meanOf(pool, robust, 'replicaWorst'),
    // A swarm that has diverged has lost without bound.
    meanOf(pool, bare, 'merged').catch(unboundIfDiverged),
  ])
  return [
    await excess(pool, { bar: 'B7', swarm: robust, against: clean, limit: 0.08, over: 'no liars' }),
    {
      bar: 'B7',
      configuration: `${robust.name}: worst honest replica over no liars`,
      figure: worst / lossClean - 1,
      relation: '<=',
      limit: 0.12,
      unit: 'excess',
    },
    {
      bar: 'B7',
      configuration: `${bare.name}: loss over no liars`,
      figure: Number.isNaN(lossBare) ? Infinity : lossBare / lossClean - 1,
      relation: '>=',
      limit: 1,
      unit: 'excess',
    },
    await excess(pool, {
      bar: 'B7',
      swarm: attacked(PEERS, 'robust'),
      against: clean,
      limit: 0.03,
      over: 'no defence',
    }),
  ]
}

function unboundIfDiverged(thrown: unknown): number {
  if (asFault(thrown).code === 'engine_failed') return Infinity
  throw thrown
}
