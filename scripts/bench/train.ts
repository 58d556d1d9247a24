/** `npm run bench -- train`: speed and exactness of the embedded engine, beside PyTorch where that is installed. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ShoalError } from '../../src/errors.ts'
import type { ModelSpec } from '../../src/run/manifest.ts'
import { measure, QUICK_SIZES, SIZES, type Row, type Size } from './train-contenders.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import { parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'train'
export const summary =
  'inner steps of the embedded engine: tokens/s, CPU time, memory, against PyTorch'

export const usage = `npm run bench -- train [options]

Trains the same model from the same parameters on the same batches, contender by contender in turns, each in its own
process. CPU time is the figure to compare: other work on the machine lengthens the wall time.

  --quick                under half a minute: the small model, one thread
  --activation NAME      relu-squared (default) or gelu
  --python COMMAND       a Python with PyTorch (default python3, then /usr/bin/python3)
  --json                 one object on stdout
`

/** The bar: speed of the engine per CPU-second on one thread, as a share of PyTorch's. */
const LEAST_SHARE = 0.8
/** Of the gradient's norm, and of the loss in nats: float32 sums in another order. */
const LARGEST_ERROR = 1e-5
/** Below this many GFLOP per CPU-second, PyTorch has no optimised BLAS and the comparison flatters the engine. */
const LEAST_GEMM_GFLOPS = 20

interface Options {
  sizes: readonly Size[]
  activation: ModelSpec['activation']
  pythons: readonly string[]
  json: boolean
}

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const python = await findPyTorch(options.pythons, signal)
  const folder = await mkdtemp(join(tmpdir(), 'shoal-bench-'))
  try {
    const rows: Row[] = []
    for (const size of options.sizes) {
      rows.push(...(await measure(size, options.activation, python, folder, signal)))
    }
    const findings = findingsOf(rows)
    const notes = notesOf(rows, python)
    const report = { activation: options.activation, rows, findings, notes }
    process.stdout.write(options.json ? `${JSON.stringify(jsonOf(report))}\n` : textOf(report))
    return findings.every(isMet) ? 0 : 1
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    quick: { type: 'boolean' },
    activation: { type: 'string' },
    python: { type: 'string' },
  })
  const activation = values.activation ?? 'relu-squared'
  if (activation !== 'relu-squared' && activation !== 'gelu') {
    throw new ShoalError('usage', `--activation is relu-squared or gelu, not '${activation}'`)
  }
  return {
    sizes: values.quick === true ? QUICK_SIZES : SIZES,
    activation,
    pythons: values.python === undefined ? ['python3', '/usr/bin/python3'] : [values.python],
    json: values.json === true,
  }
}

/** The first of the commands that can import torch. */
async function findPyTorch(
  commands: readonly string[],
  signal: AbortSignal,
): Promise<string | undefined> {
  for (const command of commands) {
    try {
      await promisify(execFile)(command, ['-c', 'import torch'], { signal, timeout: 60_000 })
      return command
    } catch {
      if (signal.aborted) throw signal.reason
    }
  }
  return undefined
}

const isPyTorch = ({ engine }: Row): boolean => engine.startsWith('PyTorch')
const isNative = ({ engine }: Row): boolean => engine === 'engine native'

/** PyTorch's row of the same size and threads. */
function rivalOf(row: Row, rows: readonly Row[]): Row | undefined {
  return rows.find(
    (other) => isPyTorch(other) && other.size === row.size && other.threads === row.threads,
  )
}

function findingsOf(rows: readonly Row[]): Finding[] {
  const findings: Finding[] = []
  for (const row of rows) {
    const configuration = `${row.size}, ${row.engine}, ${row.threads} threads`
    const native = rows.find((other) => other.size === row.size && isNative(other))
    if (native === undefined) continue
    if (row !== native) {
      const error = { relation: '<=', limit: LARGEST_ERROR, unit: 'error' } as const
      findings.push(
        { bar: 'gradient', configuration, figure: row.gradientError, ...error },
        {
          bar: 'loss',
          configuration,
          figure: Math.abs(row.firstLoss - native.firstLoss),
          ...error,
        },
      )
    }
    const rival = rivalOf(row, rows)
    if (rival === undefined || !isNative(row) || row.threads !== 1) continue
    findings.push({
      bar: 'speed',
      configuration: `${row.size}, per CPU-second, of ${rival.engine}`,
      figure: rival.cpuMs / row.cpuMs,
      relation: '>=',
      limit: LEAST_SHARE,
      unit: 'share',
    })
  }
  return findings
}

function notesOf(rows: readonly Row[], python: string | undefined): string[] {
  const notes: string[] = []
  if (python === undefined) {
    notes.push(
      'PyTorch is not on this machine, so there is no ratio (Debian: apt-get install python3-torch libopenblas0-pthread).',
    )
  }
  const slow = rows.find(({ gemmGflops = Infinity }) => gemmGflops < LEAST_GEMM_GFLOPS)
  if (slow?.gemmGflops !== undefined) {
    notes.push(
      `This PyTorch multiplies matrices at ${slow.gemmGflops.toFixed(1)} GFLOP per CPU-second: it has no optimised BLAS, the ratio flatters the engine (Debian: apt-get install libopenblas0-pthread).`,
    )
  }
  return notes
}

interface Report {
  activation: string
  rows: readonly Row[]
  findings: readonly Finding[]
  notes: readonly string[]
}

function jsonOf({ activation, rows, findings, notes }: Report): object {
  const bars = findings.map((finding) => Object.assign({ pass: isMet(finding) }, finding))
  return { bench: name, activation, rows, bars, notes }
}

function textOf({ activation, rows, findings, notes }: Report): string {
  const fixed = (digits: number, value: (row: Row) => number): Column<Row>['cell'] => {
    return (row) => value(row).toFixed(digits)
  }
  const columns: Column<Row>[] = [
    { title: 'size', cell: (row) => row.size },
    { title: 'engine', cell: (row) => row.engine },
    { title: 'threads', align: 'right', cell: fixed(0, (row) => row.threads) },
    { title: 'CPU ms', align: 'right', cell: fixed(1, (row) => row.cpuMs) },
    { title: 'wall ms', align: 'right', cell: fixed(1, (row) => row.wallMs) },
    { title: 'best', align: 'right', cell: fixed(1, (row) => row.wallBestMs) },
    { title: 'tokens/s', align: 'right', cell: fixed(0, (row) => row.tokensPerSecond) },
    { title: 'tokens/CPU-s', align: 'right', cell: fixed(0, (row) => row.tokensPerCpuSecond) },
    {
      title: 'of PyTorch',
      align: 'right',
      cell: (row) => {
        const rival = rivalOf(row, rows)
        return rival === undefined ? '-' : (rival.cpuMs / row.cpuMs).toFixed(2)
      },
    },
    { title: 'peak MB', align: 'right', cell: fixed(0, (row) => row.peakBytes / 1e6) },
    { title: 'start s', align: 'right', cell: fixed(1, (row) => row.startMs / 1000) },
    { title: 'first loss', align: 'right', cell: fixed(5, (row) => row.firstLoss) },
    { title: 'last loss', align: 'right', cell: fixed(4, (row) => row.lastLoss) },
  ]
  return [
    formatTable(columns, rows),
    `Per inner step with ${activation}: medians over rounds. "of PyTorch" is speed per CPU-second.`,
    ...notes,
    '',
    ...(findings.length === 0 ? [] : [formatTable(FINDING_COLUMNS, findings)]),
  ].join('\n')
}
