/** `npm run bench -- codec`: what codecs cost in bytes, time, error and loss. */
import { availableParallelism } from 'node:os'
import { setImmediate } from 'node:timers/promises'
import { createStatusBlock } from '../../node/progress.ts'
import { abortReason } from '../../src/clock.ts'
import { CODEC_IDS, codecs, type CodecId } from '../../src/codec/codec.ts'
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import { seededRandom } from '../../src/random.ts'
import { averagingSchema, withPublishedDefaults } from '../../src/run/manifest.ts'
import { squaredDistance, sumOfSquares } from '../../src/tensor/vector.ts'
import { convergenceSetup } from './convergence/setup.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import {
  createSimulationPool,
  type SimulationPool,
  type SwarmCase,
} from './convergence/simulation-pool.ts'
import { numberOption, parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'codec'
export const summary = 'bytes, MB/s, error and loss cost of every codec and kind of message'

export const usage = `npm run bench -- codec [options]

Encodes and decodes slices of 2^18 numbers of Student's t distribution (4 degrees of freedom, as heavy-tailed as
pseudo-gradients), then trains swarms of 8 in one process to see what each codec costs in loss.

  --quick           seconds: without the loss
  --outer-steps N   of the swarms, 20 inner steps each (default 50); sparse codecs need 100 to 200
  --json            one object on stdout
`

const PEERS = 8
/** Slices measured in turn: 16 MiB, more than the caches of a core. */
const SLICES = 16

interface Options {
  /** 0: no simulations. */
  outerSteps: number
  /** Of measuring one codec in one direction. */
  milliseconds: number
  json: boolean
}

interface Speed {
  id: CodecId
  bytesPerParameter: number
  /** Of fp32, the best pass over all slices. */
  encodeMegabytesPerSecond: number
  decodeMegabytesPerSecond: number
  /** Root mean square of the error as a share of that of the values. */
  relativeError: number
}

/** What a kind of message costs; null when nothing was simulated. */
interface Loss {
  message: string
  bytesPerParameter: number
  merged: number
  /** Over the same rule with fp32. */
  excess: number
}

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const slices = studentSlices(SLICES, LIMITS.sliceElements)
  const speeds: Speed[] = []
  for (const id of CODEC_IDS) speeds.push(await measureSpeed(id, slices, options, signal))
  const losses = options.outerSteps === 0 ? [] : await measureLosses(options.outerSteps, signal)
  const findings = findingsOf(losses)
  const report = { outerSteps: options.outerSteps, speeds, losses, findings }
  process.stdout.write(options.json ? `${JSON.stringify(jsonOf(report))}\n` : textOf(report))
  return findings.every(isMet) ? 0 : 1
}

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    quick: { type: 'boolean' },
    'outer-steps': { type: 'string' },
  })
  const isQuick = values.quick === true
  const text = values['outer-steps']
  if (isQuick && text !== undefined) {
    throw new ShoalError('usage', '--quick simulates nothing: leave out --outer-steps or --quick')
  }
  const outerSteps = numberOption('--outer-steps', text, 50, { min: 1, max: 10_000 })
  return {
    outerSteps: isQuick ? 0 : outerSteps,
    milliseconds: isQuick ? 100 : 500,
    json: values.json === true,
  }
}

/** Pseudo-gradient-like: t with 4 degrees of freedom, of the scale 1e-3. */
function studentSlices(count: number, elements: number): Float32Array[] {
  const random = seededRandom('bench codec')
  const chiSquared = (): number =>
    Array.from({ length: 4 }, () => random.normal() ** 2).reduce((sum, square) => sum + square, 0)
  const values = Float32Array.from(
    { length: elements },
    () => (1e-3 * random.normal()) / Math.sqrt(chiSquared() / 4),
  )
  // The same numbers turned, so that making them does not take longer than measuring.
  return Array.from({ length: count }, (_, slice) => {
    const turn = Math.floor((slice * elements) / count)
    return new Float32Array([...values.subarray(turn), ...values.subarray(0, turn)])
  })
}

async function measureSpeed(
  id: CodecId,
  slices: readonly Float32Array[],
  { milliseconds }: Options,
  signal: AbortSignal,
): Promise<Speed> {
  const codec = codecs[id]
  const bytes = slices.reduce((sum, slice) => sum + slice.byteLength, 0)
  let encoded: Uint8Array[] = []
  const encoding = await bestPass(milliseconds, signal, () => {
    encoded = slices.map((slice) => codec.encode(slice))
  })
  const target = new Float32Array(LIMITS.sliceElements)
  const decoding = await bestPass(milliseconds, signal, () => {
    for (const each of encoded) codec.decode(each, target.length, target)
  })
  const [squaredError, squaredNorm] = slices.reduce(
    ([error, squares], slice, index) => [
      error + squaredDistance(codec.decode(encoded[index]!, slice.length), slice),
      squares + sumOfSquares(slice),
    ],
    [0, 0],
  )
  return {
    id,
    bytesPerParameter: (4 * encoded.reduce((sum, { length }) => sum + length, 0)) / bytes,
    encodeMegabytesPerSecond: bytes / 1000 / encoding,
    decodeMegabytesPerSecond: bytes / 1000 / decoding,
    relativeError: Math.sqrt(squaredError / squaredNorm),
  }
}

/** Milliseconds of the fastest of several passes: what other work on the machine slows down does not count. */
async function bestPass(
  milliseconds: number,
  signal: AbortSignal,
  pass: () => void,
): Promise<number> {
  const startedMs = performance.now()
  let best = Infinity
  for (let passes = 0; passes < 3 || performance.now() - startedMs < milliseconds; passes++) {
    signal.throwIfAborted()
    const passStartedMs = performance.now()
    pass()
    best = Math.min(best, performance.now() - passStartedMs)
    await setImmediate()
  }
  return best
}

interface Case {
  message: string
  /** Of the spec, with the settings its codec was published with. */
  averaging: Record<string, unknown>
}

/** The first of each list is what the others are compared with. */
const ALL_REDUCE: readonly Case[] = CODEC_IDS.map((pseudoGradientCodec) => ({
  message: `all-reduce: ${pseudoGradientCodec}`,
  averaging: { rule: 'diloco', pseudoGradientCodec },
}))
const GOSSIP: readonly Case[] = [
  {
    message: 'groups of 4: fp32 + fp32',
    averaging: { groupSize: 4, pseudoGradientCodec: 'fp32', parametersCodec: 'fp32' },
  },
  { message: 'groups of 4: int4-64 + int8-128', averaging: { groupSize: 4 } },
  {
    message: 'groups of 4: adapt-then-combine, int8-128',
    averaging: { groupSize: 4, rule: 'adapt-then-combine' },
  },
]
const [, DEFAULT_GOSSIP, ADAPT_THEN_COMBINE] = GOSSIP

async function measureLosses(outerSteps: number, signal: AbortSignal): Promise<Loss[]> {
  const status = createStatusBlock(process.stderr)
  const failed = new AbortController()
  const pool = await createSimulationPool({
    setup: await convergenceSetup(),
    seeds: ['codec'],
    engines: Math.min(4, availableParallelism()),
    signal: AbortSignal.any([signal, failed.signal]),
    onProgress: ({ steps, totalSteps, finished }) => {
      if (finished !== undefined) {
        status.print(`${finished.name}: ${finished.seconds.toFixed(0)} s`)
      }
      status.draw([`${((100 * steps) / totalSteps).toFixed(0)} % of ${totalSteps} peer steps`])
    },
  })
  try {
    const work = [GOSSIP, ALL_REDUCE].map((cases) => compare(pool, cases, outerSteps))
    const losses = (await Promise.all(work)).flat()
    status.draw([])
    return losses
  } catch (fault) {
    // One fault ends the bench: nobody wants what still runs.
    failed.abort(fault)
    throw signal.aborted ? abortReason(signal) : fault
  } finally {
    status.end()
    await pool.close()
  }
}

async function compare(
  pool: SimulationPool,
  cases: readonly Case[],
  outerSteps: number,
): Promise<Loss[]> {
  const figures = await Promise.all(
    cases.map(async ({ message, averaging }) => {
      const swarm: SwarmCase = {
        name: message,
        method: {
          kind: 'averaging',
          averaging: averagingSchema.parse(withPublishedDefaults(averaging)),
        },
        peers: PEERS,
        outerSteps,
      }
      const [each] = await pool.figures(swarm)
      if (each === undefined) throw new ShoalError('internal', 'a simulation ran for no seed')
      return { message, ...each }
    }),
  )
  const reference = figures[0]?.merged ?? Number.NaN
  return figures.map(({ message, merged, messageBytes, parameters }) => ({
    message,
    bytesPerParameter: messageBytes / parameters,
    merged,
    excess: merged / reference - 1,
  }))
}

/** Bars of the research on compression: B5, and 3 % for one vector instead of two. */
function findingsOf(losses: readonly Loss[]): Finding[] {
  return [
    { message: DEFAULT_GOSSIP?.message, bar: 'B5', limit: 0.01 },
    { message: ADAPT_THEN_COMBINE?.message, bar: '3b', limit: 0.03 },
  ].flatMap(({ message, bar, limit }): Finding[] => {
    const loss = losses.find((each) => each.message === message)
    if (loss === undefined) return []
    const configuration = `${loss.message}: loss over fp32`
    return [{ bar, configuration, figure: loss.excess, relation: '<=', limit, unit: 'excess' }]
  })
}

interface Report {
  outerSteps: number
  speeds: readonly Speed[]
  losses: readonly Loss[]
  findings: readonly Finding[]
}

const SPEED_COLUMNS: readonly Column<Speed>[] = [
  { title: 'codec', cell: ({ id }) => id },
  {
    title: 'B/param',
    align: 'right',
    cell: ({ bytesPerParameter }) => bytesPerParameter.toFixed(4),
  },
  {
    title: 'encode MB/s',
    align: 'right',
    cell: ({ encodeMegabytesPerSecond }) => encodeMegabytesPerSecond.toFixed(0),
  },
  {
    title: 'decode MB/s',
    align: 'right',
    cell: ({ decodeMegabytesPerSecond }) => decodeMegabytesPerSecond.toFixed(0),
  },
  {
    title: 'error',
    align: 'right',
    cell: ({ relativeError }) => `${(100 * relativeError).toFixed(2)} %`,
  },
]

const LOSS_COLUMNS: readonly Column<Loss>[] = [
  { title: 'message', cell: ({ message }) => message },
  {
    title: 'B/param',
    align: 'right',
    cell: ({ bytesPerParameter }) => bytesPerParameter.toFixed(3),
  },
  { title: 'merged loss', align: 'right', cell: ({ merged }) => merged.toFixed(4) },
  {
    title: 'over fp32',
    align: 'right',
    cell: ({ excess }) => `${excess < 0 ? '' : '+'}${(100 * excess).toFixed(1)} %`,
  },
]

function textOf({ outerSteps, speeds, losses, findings }: Report): string {
  const training =
    losses.length === 0
      ? ['the loss was left out (--quick)\n']
      : [
          `loss of ${PEERS} peers after ${outerSteps} outer steps; what top-k costs falls with their number\n`,
          formatTable(LOSS_COLUMNS, losses),
          formatTable(FINDING_COLUMNS, findings),
        ]
  return [
    'MB/s of fp32, error of the root mean square, Student t with 4 degrees of freedom\n',
    formatTable(SPEED_COLUMNS, speeds),
    ...training,
  ].join('\n')
}

function jsonOf({ outerSteps, speeds, losses, findings }: Report): object {
  return {
    bench: name,
    peers: PEERS,
    outerSteps,
    codecs: speeds,
    messages: losses,
    bars: findings.map((finding) => ({ ...finding, pass: isMet(finding) })),
  }
}
