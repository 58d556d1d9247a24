/** What it costs in loss that exchange and training overlap, and that parameters travel in fragments: the bar B9. */
import { excess, type Bar } from './comparison.ts'
import { overlapping, streaming } from './cases.ts'
import type { Finding } from '../finding.ts'
import type { SimulationPool } from './simulation-pool.ts'

const PEERS = 8
const LIMIT = 0.04

export function overlapBars(): Bar[] {
  return [{ id: 'B9', measure: overlapCost }]
}

function overlapCost(pool: SimulationPool): Promise<Finding[]> {
  const gossip = overlapping('gossip-diloco', PEERS, 0)
  const allReduce = overlapping('diloco', PEERS, 0)
  const comparisons = [
    { swarm: overlapping('gossip-diloco', PEERS, 2), against: gossip },
    { swarm: overlapping('gossip-diloco', PEERS, 5), against: gossip },
    { swarm: overlapping('diloco', PEERS, 5), against: allReduce },
    { swarm: streaming(PEERS, 4, 0), against: allReduce },
    { swarm: streaming(PEERS, 4, 2), against: allReduce },
  ]
  return Promise.all(
    comparisons.map((comparison) => excess(pool, { bar: 'B9', limit: LIMIT, ...comparison })),
  )
}
