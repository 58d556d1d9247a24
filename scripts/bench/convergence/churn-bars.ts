/** What failing peers and skewed data cost: the bars B6 and B11, and the table of losses against data parallel. */
import { excess, meanOf, type Bar } from './comparison.ts'
import { adverse, dataParallel, SHORT } from './cases.ts'
import type { Finding } from '../finding.ts'
import type { SimulationPool } from './simulation-pool.ts'
import type { Column } from '../table.ts'

const PEERS = [16, 8, 4] as const
/**
 * Share of the peers that fail in every round, and by how much the loss may then exceed that without. The limits were set
 * by 8 peers with like data, and by a smaller model on 16. With 4 peers and one topic each they are at the edge of what
 * can be had: whoever fails takes a quarter of the data along, and all-reduce DiLoCo itself loses 9 %.
 */
const CHURN_LIMITS = [
  [0.3, 0.09],
  [0.1, 0.06],
] as const

export function churnBars(): Bar[] {
  return [
    { id: 'B6', measure: churnCost },
    { id: 'B11', measure: skewCost },
  ]
}

function churnCost(pool: SimulationPool): Promise<Finding[]> {
  const findings = PEERS.flatMap((peers) =>
    [false, true].flatMap((sharded) =>
      CHURN_LIMITS.map(([churn, limit]) => {
        const swarm = adverse(peers, SHORT, { churn, sharded })
        const against = adverse(peers, SHORT, { churn: 0, sharded })
        return excess(pool, { bar: 'B6', swarm, against, limit, over: 'no churn' })
      }),
    ),
  )
  return Promise.all(findings)
}

async function skewCost(pool: SimulationPool): Promise<Finding[]> {
  const swarm = adverse(8, SHORT, { churn: 0, sharded: true })
  const against = dataParallel(8, SHORT)
  const [mean, merged] = await Promise.all([
    meanOf(pool, swarm, 'replicaMean'),
    meanOf(pool, swarm, 'merged'),
  ])
  return [
    await excess(pool, { bar: 'B11', swarm, against, limit: 0.2 }),
    {
      bar: 'B11',
      configuration: `${swarm.name}: mean replica over merged`,
      figure: mean / merged - 1,
      relation: '<=',
      limit: 0.05,
      unit: 'excess',
    },
  ]
}

/** Merged loss of one kind of swarm, by churn. */
export interface ChurnRow {
  peers: number
  sharded: boolean
  /** Loss of data parallel training on as many tokens as a swarm without churn. */
  dataParallel: number
  none: number
  tenth: number
  threeTenths: number
}

/** The simulations of the bars again: nothing is run twice. */
export function churnRows(pool: SimulationPool): Promise<ChurnRow[]> {
  const rows = PEERS.toReversed().flatMap((peers) =>
    [false, true].map(async (sharded): Promise<ChurnRow> => {
      const lossOf = (churn: number): Promise<number> =>
        meanOf(pool, adverse(peers, SHORT, { churn, sharded }), 'merged')
      const reference = await meanOf(pool, dataParallel(peers, SHORT), 'merged')
      const [none, tenth, threeTenths] = [await lossOf(0), await lossOf(0.1), await lossOf(0.3)]
      return { peers, sharded, dataParallel: reference, none, tenth, threeTenths }
    }),
  )
  return Promise.all(rows)
}

const against = (loss: number, { dataParallel: reference }: ChurnRow): string =>
  `${loss.toFixed(4)} (+${(100 * (loss / reference - 1)).toFixed(1)} %)`

export const CHURN_COLUMNS: readonly Column<ChurnRow>[] = [
  { title: 'peers', align: 'right', cell: ({ peers }) => String(peers) },
  { title: 'data', cell: ({ sharded }) => (sharded ? 'one topic each' : 'alike') },
  { title: 'data parallel', align: 'right', cell: (row) => row.dataParallel.toFixed(4) },
  { title: 'churn 0', align: 'right', cell: (row) => against(row.none, row) },
  { title: '10 %', align: 'right', cell: (row) => against(row.tenth, row) },
  { title: '30 %', align: 'right', cell: (row) => against(row.threeTenths, row) },
]
