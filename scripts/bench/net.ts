/** `npm run bench -- net`: transfers and peer RPC between two processes, by each path, beside bare sockets. */
import { availableParallelism, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { createStatusBlock, type StatusBlock } from '../../node/progress.ts'
import { ShoalError } from '../../src/errors.ts'
import { MEETING, PATHS, type Path } from './net-paths.ts'
import { addressSchema, callsSchema, cpuSchema, readySchema } from './net-peer.ts'
import { transferSchema, type CallsRequest, type PeerRequest } from './net-peer.ts'
import { openLine } from './emulated-line.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import { startJsonProcess, type JsonProcess } from './json-process.ts'
import { parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'net'
export const summary =
  'transfers and calls between two processes, by each path, beside bare sockets'

export const usage = `npm run bench -- net [options]

Moves data between two processes of this machine, path by path in turns, and makes calls of 128 B and 256 KB, so many at
once. A share is taken round by round, from neighbours in time; beside other work on the machine look at the shares and
at CPU time.

  --quick           half a minute: half of the data, fewer rounds and calls
  --only LIST       of ${PATHS.join(', ')}
  --json            one object on stdout
`

const RAW_TLS: Path = 'raw tls'
/** The best direct path, which the bars are for. */
const BEST: Path = 'tcp + tls'
const CALL_PATHS: ReadonlySet<Path> = new Set([BEST, 'relayed'])
const CALL_BYTES = [128, 256 << 10] as const
const LINE = { bitsPerSecond: 100e6, roundTripMs: 40 }

interface Options {
  paths: readonly Path[]
  bytes: number
  rounds: number
  concurrencies: readonly number[]
  /** Of calls in each cell. */
  milliseconds: number
  lineSeconds: number
  json: boolean
}

interface Transfer {
  path: Path
  megabytesPerSecond: number
  best: number
  /** Of bare TLS in the same round, the median; null without it. */
  share: number | null
  sourceCpuSecondsPerGigabyte: number
  sinkCpuSecondsPerGigabyte: number
}

interface Calls {
  path: Path
  bytes: number
  concurrency: number
  perSecond: number
  p50Ms: number
  p99Ms: number
  sourceCpuMicroseconds: number
  sinkCpuMicroseconds: number
}

interface LineResult {
  megabitsPerSecond: number
  share: number
}

interface Report {
  bytes: number
  transfers: Transfer[]
  calls: Calls[]
  line: LineResult | null
  findings: Finding[]
  load: number
  cores: number
}

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const status = createStatusBlock(process.stderr)
  const pairs = await openPairs(options.paths, status, signal)
  try {
    const transfers = await measureTransfers(pairs.all, options, status, signal)
    const calls = await measureCalls(pairs.all, options, status, signal)
    const line = await measureLine(pairs.all, options, status, signal)
    const [load = 0] = loadavg()
    const findings = findingsOf(transfers, calls, line)
    const cores = availableParallelism()
    const report = { bytes: options.bytes, transfers, calls, line, findings, load, cores }
    status.draw([])
    process.stdout.write(options.json ? `${JSON.stringify(jsonOf(report))}\n` : textOf(report))
    return findings.every(isMet) ? 0 : 1
  } finally {
    status.end()
    await pairs.end()
  }
}

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    quick: { type: 'boolean' },
    only: { type: 'string' },
  })
  const isQuick = values.quick === true
  return {
    paths: values.only === undefined ? PATHS : readPaths(values.only),
    bytes: isQuick ? 128e6 : 256e6,
    rounds: isQuick ? 3 : 7,
    concurrencies: isQuick ? [1, 256] : [1, 16, 256, 1000],
    milliseconds: isQuick ? 700 : 2000,
    lineSeconds: isQuick ? 2 : 8,
    json: values.json === true,
  }
}

function readPaths(list: string): Path[] {
  return list.split(',').map((text) => {
    const path = PATHS.find((known) => known === text.trim())
    if (path !== undefined) return path
    throw new ShoalError('usage', `unknown path '${text}': known are ${PATHS.join(', ')}`)
  })
}

/** Two processes and a path between them. */
interface Pair {
  path: Path
  /** Of the source. */
  address: string
  sink: JsonProcess
  cpuSeconds(signal: AbortSignal): Promise<{ source: number; sink: number }>
}

interface Pairs {
  all: Pair[]
  end(): Promise<void>
}

function startPeer(): JsonProcess {
  const script = fileURLToPath(new URL('net-peer.ts', import.meta.url))
  return startJsonProcess(process.execPath, [script])
}

/** Each path in processes of its own: what one leaves in memory must not cost another. */
async function openPairs(
  paths: readonly Path[],
  status: StatusBlock,
  signal: AbortSignal,
): Promise<Pairs> {
  const peers: JsonProcess[] = []
  const start = (): JsonProcess => {
    const peer = startPeer()
    peers.push(peer)
    return peer
  }
  const end = async (): Promise<void> => {
    for (const peer of peers) await peer.end()
  }
  const addressOf = async (peer: JsonProcess, request: PeerRequest): Promise<string> =>
    (await peer.ask(request, addressSchema, signal)).address
  const cpuOf = async (peer: JsonProcess, limit: AbortSignal): Promise<number> =>
    (await peer.ask({ do: 'cpu' } satisfies PeerRequest, cpuSchema, limit)).cpuSeconds
  try {
    const needsRelay = paths.some((path) => MEETING.has(path))
    const relay = needsRelay ? await addressOf(start(), { do: 'relay' }) : undefined
    const all: Pair[] = []
    for (const path of paths) {
      status.draw([`opening ${path}`])
      const [source, sink] = [start(), start()]
      const address = await addressOf(source, { do: 'source', path, relay })
      await sink.ask({ do: 'sink', path, address } satisfies PeerRequest, readySchema, signal)
      const cpuSeconds: Pair['cpuSeconds'] = async (limit) => ({
        source: await cpuOf(source, limit),
        sink: await cpuOf(sink, limit),
      })
      all.push({ path, address, sink, cpuSeconds })
    }
    return { all, end }
  } catch (cause) {
    await end()
    throw cause
  }
}

interface Sample {
  seconds: number
  source: number
  sink: number
}

async function measureTransfers(
  pairs: readonly Pair[],
  { bytes, rounds }: Options,
  status: StatusBlock,
  signal: AbortSignal,
): Promise<Transfer[]> {
  const samples = new Map<Pair, Sample[]>(pairs.map((pair) => [pair, []]))
  // The first round warms up: code is compiled, windows grow.
  for (let round = 0; round <= rounds; round++) {
    for (const [pair, ofPath] of samples) {
      status.draw([`transfers, round ${round} of ${rounds}: ${pair.path}`])
      const before = await pair.cpuSeconds(signal)
      const request: PeerRequest = { do: 'transfer', bytes }
      const { seconds } = await pair.sink.ask(request, transferSchema, signal)
      const after = await pair.cpuSeconds(signal)
      const source = after.source - before.source
      if (round > 0) ofPath.push({ seconds, source, sink: after.sink - before.sink })
    }
  }
  const [, raw] = [...samples].find(([{ path }]) => path === RAW_TLS) ?? []
  return [...samples].map(([{ path }, ofPath]) => ({
    path,
    megabytesPerSecond: bytes / 1e6 / median(ofPath.map(({ seconds }) => seconds)),
    best: bytes / 1e6 / Math.min(...ofPath.map(({ seconds }) => seconds)),
    share: raw === undefined ? null : medianShare(raw, ofPath),
    sourceCpuSecondsPerGigabyte: median(ofPath.map(({ source }) => source)) / (bytes / 1e9),
    sinkCpuSecondsPerGigabyte: median(ofPath.map(({ sink }) => sink)) / (bytes / 1e9),
  }))
}

function medianShare(raw: readonly Sample[], samples: readonly Sample[]): number {
  return median(samples.map(({ seconds }, round) => (raw[round]?.seconds ?? 0) / seconds))
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
}

async function measureCalls(
  pairs: readonly Pair[],
  { concurrencies, milliseconds }: Options,
  status: StatusBlock,
  signal: AbortSignal,
): Promise<Calls[]> {
  const calls: Calls[] = []
  for (const pair of pairs.filter(({ path }) => CALL_PATHS.has(path))) {
    for (const bytes of CALL_BYTES) {
      const warmUp: PeerRequest = { do: 'calls', bytes, concurrency: 16, milliseconds: 300 }
      await pair.sink.ask(warmUp, callsSchema, signal)
      for (const concurrency of concurrencies) {
        status.draw([`calls of ${bytes} B, ${concurrency} at once: ${pair.path}`])
        calls.push(await measureCell(pair, { ...warmUp, concurrency, milliseconds }, signal))
      }
    }
  }
  return calls
}

async function measureCell(pair: Pair, request: CallsRequest, signal: AbortSignal): Promise<Calls> {
  const before = await pair.cpuSeconds(signal)
  const { calls, seconds, p50Ms, p99Ms } = await pair.sink.ask(request, callsSchema, signal)
  const after = await pair.cpuSeconds(signal)
  return {
    path: pair.path,
    bytes: request.bytes,
    concurrency: request.concurrency,
    perSecond: calls / seconds,
    p50Ms,
    p99Ms,
    sourceCpuMicroseconds: ((after.source - before.source) * 1e6) / calls,
    sinkCpuMicroseconds: ((after.sink - before.sink) * 1e6) / calls,
  }
}

/** The best path over a line as homes have it. */
async function measureLine(
  pairs: readonly Pair[],
  { lineSeconds }: Options,
  status: StatusBlock,
  signal: AbortSignal,
): Promise<LineResult | null> {
  const address = pairs.find(({ path }) => path === BEST)?.address
  const port = Number(/\/tcp\/(\d+)/.exec(address ?? '')?.[1])
  if (address === undefined) return null
  status.draw(['a slow, long line'])
  const line = await openLine({ port, ...LINE })
  const far = startPeer()
  try {
    const overLine = address.replace(`/tcp/${port}`, `/tcp/${line.port}`)
    const sink: PeerRequest = { do: 'sink', path: BEST, address: overLine }
    await far.ask(sink, readySchema, signal)
    const bytes = Math.round((LINE.bitsPerSecond / 8) * lineSeconds)
    const warmUp: PeerRequest = { do: 'transfer', bytes: Math.round(bytes / 4) }
    await far.ask(warmUp, transferSchema, signal)
    const { seconds } = await far.ask({ ...warmUp, bytes }, transferSchema, signal)
    const megabitsPerSecond = (8 * bytes) / 1e6 / seconds
    return { megabitsPerSecond, share: (megabitsPerSecond * 1e6) / LINE.bitsPerSecond }
  } finally {
    await far.end()
    await line.close()
  }
}

function findingsOf(
  transfers: readonly Transfer[],
  calls: readonly Calls[],
  line: LineResult | null,
): Finding[] {
  const share = transfers.find(({ path }) => path === BEST)?.share ?? null
  const most = (bytes: number): number =>
    Math.max(
      ...calls
        .filter((cell) => cell.path === BEST && cell.bytes === bytes)
        .map(({ perSecond }) => perSecond),
    )
  const bar = (configuration: string, figure: number, limit: number, unit: Finding['unit']) =>
    ({ bar: BEST, configuration, figure, relation: '>=', limit, unit }) as const
  return [
    ...(share === null ? [] : [bar('bulk, of bare TLS', share, 0.6, 'share')]),
    ...(calls.every(({ path }) => path !== BEST)
      ? []
      : [
          bar('calls of 128 B a second', most(128), 100_000, 'count'),
          bar('calls of 256 KB a second', most(256 << 10), 1500, 'count'),
        ]),
    ...(line === null ? [] : [bar('of a 100 Mbit/s, 40 ms line', line.share, 0.9, 'share')]),
  ]
}

const TRANSFER_COLUMNS: readonly Column<Transfer>[] = [
  { title: 'path', cell: ({ path }) => path },
  {
    title: 'MB/s',
    align: 'right',
    cell: ({ megabytesPerSecond }) => megabytesPerSecond.toFixed(0),
  },
  { title: 'best', align: 'right', cell: ({ best }) => best.toFixed(0) },
  {
    title: 'of raw tls',
    align: 'right',
    cell: ({ share }) => (share === null ? '-' : `${(100 * share).toFixed(0)} %`),
  },
  {
    title: 'source CPU-s/GB',
    align: 'right',
    cell: ({ sourceCpuSecondsPerGigabyte }) => sourceCpuSecondsPerGigabyte.toFixed(2),
  },
  {
    title: 'sink CPU-s/GB',
    align: 'right',
    cell: ({ sinkCpuSecondsPerGigabyte }) => sinkCpuSecondsPerGigabyte.toFixed(2),
  },
]

const CALL_COLUMNS: readonly Column<Calls>[] = [
  { title: 'path', cell: ({ path }) => path },
  { title: 'bytes', align: 'right', cell: ({ bytes }) => String(bytes) },
  { title: 'at once', align: 'right', cell: ({ concurrency }) => String(concurrency) },
  { title: 'QPS', align: 'right', cell: ({ perSecond }) => perSecond.toFixed(0) },
  { title: 'p50 ms', align: 'right', cell: ({ p50Ms }) => p50Ms.toFixed(2) },
  { title: 'p99 ms', align: 'right', cell: ({ p99Ms }) => p99Ms.toFixed(2) },
  {
    title: 'source CPU us',
    align: 'right',
    cell: ({ sourceCpuMicroseconds }) => sourceCpuMicroseconds.toFixed(1),
  },
  {
    title: 'sink CPU us',
    align: 'right',
    cell: ({ sinkCpuMicroseconds }) => sinkCpuMicroseconds.toFixed(1),
  },
]

function textOf({ bytes, transfers, calls, line, findings, load, cores }: Report): string {
  const overLine =
    line === null
      ? []
      : [
          `a line of 100 Mbit/s and 40 ms, emulated by a proxy: ${line.megabitsPerSecond.toFixed(1)} Mbit/s\n`,
        ]
  return [
    `transfer of ${bytes / 1e6} MB; load of the machine at the end: ${load.toFixed(1)} on ${cores} cores\n`,
    formatTable(TRANSFER_COLUMNS, transfers),
    ...(calls.length === 0 ? [] : ['peer RPC, as many bytes there as back\n']),
    ...(calls.length === 0 ? [] : [formatTable(CALL_COLUMNS, calls)]),
    ...overLine,
    formatTable(FINDING_COLUMNS, findings),
  ].join('\n')
}

function jsonOf({ findings, ...report }: Report): object {
  const bars = findings.map((finding) => ({ ...finding, pass: isMet(finding) }))
  return { bench: name, ...report, bars }
}
