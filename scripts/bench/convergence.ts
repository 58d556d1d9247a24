/** `npm run bench -- convergence`: what gossip averaging costs in loss, against all-reduce and data parallel. */
import { availableParallelism } from 'node:os'
import { nearest } from '../../node/validation.ts'
import { abortReason } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { gptSchema } from '../../src/model/gpt.ts'
import type { ModelSpec } from '../../src/run/manifest.ts'
import { CHURN_COLUMNS, churnRows, type ChurnRow } from './convergence/churn-bars.ts'
import type { Bar } from './convergence/comparison.ts'
import { barsOf } from './convergence/bars.ts'
import { convergenceSetup, LEARNING_RATE } from './convergence/setup.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import { createSimulationPool, type FinishedSimulation } from './convergence/simulation-pool.ts'
import type { SimulationPool } from './convergence/simulation-pool.ts'
import { createStatusBlock } from '../../node/progress.ts'
import { numberOption, parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'convergence'
export const summary = 'loss of gossip swarms against all-reduce DiLoCo and data parallel'

export const usage = `npm run bench -- convergence [options]

Trains swarms in one process with the real engine and outer step, and holds their losses against the bars.

  --quick             under a minute: exactness, direction, message size, consensus
  --more              other bars: failing peers, skewed data, overlap, fragments, liars
  --full              everything, also 16 peers for 2000 steps, and a second seed
  --only BARS         some of the bars, such as b3,b4; also of --more
  --seeds N           average the losses over N seeds
  --learning-rate X   of the inner AdamW
  --activation NAME   gelu (default, as in the model that the bars were set with) or relu-squared (that of new runs)
  --json              one object on stdout
`

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const startedMs = performance.now()
  const status = createStatusBlock(process.stderr)
  const failed = new AbortController()
  const pool = await createSimulationPool({
    setup: await convergenceSetup(options.learningRate, options.activation),
    seeds: Array.from({ length: options.seeds }, (_, index) => `seed ${index}`),
    engines: Math.min(ENGINES_MAX, availableParallelism()),
    signal: AbortSignal.any([signal, failed.signal]),
    onProgress: ({ steps, totalSteps, finished }) => {
      if (finished !== undefined) status.print(lineOf(finished))
      status.draw([`${((100 * steps) / totalSteps).toFixed(0)} % of ${totalSteps} peer steps`])
    },
  })
  status.print(`engine ${pool.backend}, bars ${options.bars.map(({ id }) => id).join(', ')}`)
  try {
    const findings = (await Promise.all(options.bars.map((bar) => bar.measure(pool)))).flat()
    status.draw([])
    const hasChurn = options.bars.some(({ id }) => id === 'B6')
    const churn = hasChurn ? await churnRows(pool) : []
    const report = { pool, findings, churn, seconds: (performance.now() - startedMs) / 1000 }
    process.stdout.write(options.json ? `${JSON.stringify(jsonOf(report))}\n` : textOf(report))
    return findings.every(isMet) ? 0 : 1
  } catch (fault) {
    // One fault ends the bench: nobody wants what still runs.
    failed.abort(fault)
    throw signal.aborted ? abortReason(signal) : fault
  } finally {
    status.end()
    await pool.close()
  }
}

interface Options {
  bars: Bar[]
  seeds: number
  learningRate: number
  activation: ModelSpec['activation']
  json: boolean
}

/** The main thread averages for all of them. */
const ENGINES_MAX = 8

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    quick: { type: 'boolean' },
    more: { type: 'boolean' },
    full: { type: 'boolean' },
    only: { type: 'string' },
    seeds: { type: 'string' },
    'learning-rate': { type: 'string' },
    activation: { type: 'string' },
  })
  const [scope = 'default', other] = (['quick', 'more', 'full'] as const).filter(
    (each) => values[each] === true,
  )
  if (other !== undefined) {
    throw new ShoalError('usage', `--${scope} and --${other} exclude one another: choose one`)
  }
  const bars = barsOf(scope)
  const known = scope === 'default' ? [...bars, ...barsOf('more')] : bars
  return {
    bars: values.only === undefined ? bars : chooseBars(known, values.only),
    seeds: numberOption('--seeds', values.seeds, scope === 'full' ? 2 : 1, { min: 1, max: 16 }),
    learningRate: numberOption('--learning-rate', values['learning-rate'], LEARNING_RATE, {
      min: 1e-6,
      max: 1,
      isWhole: false,
    }),
    activation: activationOf(values.activation ?? 'gelu'),
    json: values.json === true,
  }
}

/** `b3` stands for B3a to B3d. */
function chooseBars(bars: readonly Bar[], only: string): Bar[] {
  const wanted = only.toLowerCase().split(',')
  const matches = (bar: Bar, prefix: string): boolean =>
    bar.id.toLowerCase() === prefix || bar.id.toLowerCase().replace(/[a-d]$/, '') === prefix
  for (const prefix of wanted) {
    if (bars.some((bar) => matches(bar, prefix))) continue
    const ids = bars.map(({ id }) => id.toLowerCase())
    const guess = nearest(prefix, ids)
    const remedy = guess === undefined ? `known are ${ids.join(', ')}` : `did you mean ${guess}?`
    throw new ShoalError('usage', `unknown bar '${prefix}' in --only: ${remedy}`)
  }
  return bars.filter((bar) => wanted.some((prefix) => matches(bar, prefix)))
}

function activationOf(text: string): ModelSpec['activation'] {
  if (text === 'gelu' || text === 'relu-squared') return text
  throw new ShoalError('usage', `--activation is gelu or relu-squared, not '${text}'`)
}

interface Report {
  pool: SimulationPool
  findings: readonly Finding[]
  churn: readonly ChurnRow[]
  seconds: number
}

function textOf({ pool, findings, churn, seconds }: Report): string {
  const { inner, innerSteps, batchSequences, model } = pool.setup
  const failed = findings.filter((finding) => !isMet(finding)).length
  return [
    `engine ${pool.backend}; GPT of ${gptSchema(model).size} parameters with ${model.activation}; H ${innerSteps}, ${batchSequences} x ${model.context} tokens per peer and step, AdamW ${inner.learningRate}`,
    '',
    ...(pool.finished.length === 0 ? [] : [formatTable(SIMULATION_COLUMNS, sorted(pool))]),
    ...(churn.length === 0 ? [] : [formatTable(CHURN_COLUMNS, churn)]),
    formatTable(FINDING_COLUMNS, findings),
    `${findings.length - failed} of ${findings.length} pass, ${seconds.toFixed(0)} s`,
    '',
  ].join('\n')
}

function jsonOf({ pool, findings, churn, seconds }: Report): object {
  const { dataset: _, shards: _shards, ...setup } = pool.setup
  return {
    bench: name,
    engine: pool.backend,
    parameters: gptSchema(setup.model).size,
    setup,
    bars: findings.map((finding) => ({ ...finding, pass: isMet(finding) })),
    churn,
    simulations: sorted(pool),
    seconds,
  }
}

/** By name, so that the order does not tell which engine was faster. */
function sorted({ finished }: SimulationPool): FinishedSimulation[] {
  const keyOf = (each: FinishedSimulation): string => `${each.name} ${each.seed}`
  return finished.toSorted((a, b) => keyOf(a).localeCompare(keyOf(b), 'en', { numeric: true }))
}

const loss = (value: number): string => value.toFixed(4)

const SIMULATION_COLUMNS: readonly Column<FinishedSimulation>[] = [
  { title: 'simulation', cell: (each) => each.name },
  { title: 'seed', cell: (each) => each.seed },
  { title: 'merged', align: 'right', cell: (each) => loss(each.merged) },
  { title: 'replica', align: 'right', cell: (each) => loss(each.replicaMean) },
  { title: 'worst', align: 'right', cell: (each) => loss(each.replicaWorst) },
  { title: 'drift', align: 'right', cell: (each) => each.drift.toFixed(4) },
  { title: 'message', align: 'right', cell: (each) => `${each.messageBytes} B` },
]

function lineOf({
  name: simulation,
  seed,
  merged,
  replicaMean,
  seconds,
}: FinishedSimulation): string {
  return `${simulation}, ${seed}: merged ${loss(merged)}, replica ${loss(replicaMean)}, ${seconds.toFixed(1)} s`
}
