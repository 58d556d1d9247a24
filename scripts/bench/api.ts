/** `npm run bench -- api`: tensors through the local API of a real daemon, beside bare `node:http`. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
  ftruncateSync,
  closeSync,
} from 'node:fs'
import { request, type ClientRequest, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ApiClient } from '../../node/api/client.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { abortReason, raceSignal, systemClock } from '../../src/clock.ts'
import { runSpecSchema } from '../../src/run/manifest.ts'
import { safetensorsHeader } from '../../src/tensor/safetensors.ts'
import { createSchema } from '../../src/tensor/schema.ts'
import { spawnDaemon } from '../demo/daemon-process.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import { numberOption, parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'api'
export const summary = 'tensors through the local API, as a share of bare node:http, and memory'

export const usage = `npm run bench -- api [options]

Sends a model to a daemon and reads it back, in turns with a bare node:http server that looks at nothing and keeps
nothing. The daemon checks the values of an upload on their way into the flat vector; the last one is not
finite, so that it reads all, refuses it, and no round follows. Memory is that of the daemon.

  --mebibytes N    of the model (default 1024)
  --rounds N       (default 5)
  --json           one object on stdout
`

/** The bar: throughput of the API as a share of bare node:http. */
const LEAST_SHARE = 0.5
/** The bar: what the daemon's memory may grow by, as a share of the bytes of one transfer. */
const LARGEST_GROWTH = 0.1
const SLICE_BYTES = 1 << 20
const SAMPLE_MS = 20
/** Rounds before those that count: code is compiled, and buffers are there. */
const WARM_UPS = 2
const READY_MS = 30_000

interface Options {
  mebibytes: number
  rounds: number
  json: boolean
}

interface Row {
  direction: 'upload' | 'download'
  /** Medians over the rounds. */
  bareMegabytesPerSecond: number
  apiMegabytesPerSecond: number
  /** Of the median, and of the best. */
  share: number
  shareBest: number
  /** The most that the daemon's memory grew by during a transfer; null where it cannot be read. */
  growthBytes: number | null
}

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const folder = mkdtempSync(join(tmpdir(), 'shoal-bench-'))
  const bare = spawn(process.execPath, [join(import.meta.dirname, 'api-bare.ts')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const crash = new AbortController()
  const daemon = spawnDaemon({
    name: 'the daemon',
    dataDir: join(folder, 'data'),
    configFile: join(folder, 'config.toml'),
    logFile: join(folder, 'log'),
    bootstrap: undefined,
    onDeath: (fault) => crash.abort(fault),
  })
  writeFileSync(join(folder, 'config.toml'), '')
  const either = AbortSignal.any([signal, crash.signal])
  try {
    const deadline = systemClock.deadline(READY_MS, 'the bare server', either)
    const [port]: unknown[] = await raceSignal(once(bare.stdout, 'data'), deadline)
    const client = await daemon.ready(either)
    const targets = await prepare(client, folder, Number(String(port)), options)
    const rows = await measure(targets, options, either)
    const findings = findingsOf(rows, targets.bytes)
    const report = { mebibytes: options.mebibytes, rounds: options.rounds, rows, findings }
    process.stdout.write(options.json ? `${JSON.stringify(jsonOf(report))}\n` : textOf(report))
    return findings.every(isMet) ? 0 : 1
  } finally {
    bare.kill('SIGKILL')
    await daemon.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    mebibytes: { type: 'string' },
    rounds: { type: 'string' },
  })
  return {
    mebibytes: numberOption('--mebibytes', values.mebibytes, 1024, { min: 1, max: 1024 }),
    rounds: numberOption('--rounds', values.rounds, 5, { min: 1, max: 100 }),
    json: values.json === true,
  }
}

interface Targets {
  /** Of one transfer. */
  bytes: number
  head: Uint8Array
  bare: { port: number; path: string }
  api: { port: number; path: string; authorization: string }
  pid: number
}

/** A run of one model of so many bytes, that waits for its first outer step. */
async function prepare(
  client: ApiClient,
  folder: string,
  barePort: number,
  { mebibytes }: Options,
): Promise<Targets> {
  const schema = createSchema([{ name: 'w', shape: [mebibytes, SLICE_BYTES / 4], decay: true }])
  const head = safetensorsHeader(schema)
  const bytes = head.length + 4 * schema.size
  const from = join(folder, 'start.safetensors')
  const file = openSync(from, 'w')
  writeSync(file, head)
  ftruncateSync(file, bytes)
  closeSync(file)
  const spec = runSpecSchema.parse({
    model: { kind: 'external' },
    from,
    limits: { startTimeoutMs: 0 },
  })
  const { id } = await client.call(ROUTES.createRun, { spec })
  const { content } = await client.download(ROUTES.parameters, { run: id })
  await content?.cancel()
  const { pid, dataDir } = await client.call(ROUTES.node, {})
  const token = readFileSync(join(dataDir, 'api-token'), 'utf8').trim()
  return {
    bytes,
    head,
    bare: { port: barePort, path: `/${bytes}` },
    api: {
      port: Number(new URL(client.url).port),
      path: `/v1/runs/${id}`,
      authorization: `Bearer ${token}`,
    },
    pid,
  }
}

/** Bare and API in turns, so that other work on the machine slows both. */
async function measure(targets: Targets, { rounds }: Options, signal: AbortSignal): Promise<Row[]> {
  const times: Record<Row['direction'], { bare: number[]; api: number[]; growth: number[] }> = {
    upload: { bare: [], api: [], growth: [] },
    download: { bare: [], api: [], growth: [] },
  }
  for (let round = -WARM_UPS; round < rounds; round++) {
    for (const direction of ['upload', 'download'] as const) {
      if (signal.aborted) throw abortReason(signal)
      const of = times[direction]
      const bare = await timed(() => transferBare(direction, targets))
      const watch = watchMemory(targets.pid)
      const api = await timed(() => transferApi(direction, targets))
      const growth = watch.stop()
      if (round < 0) continue
      of.bare.push(bare)
      of.api.push(api)
      if (growth !== null) of.growth.push(growth)
    }
  }
  return (['upload', 'download'] as const).map((direction) => {
    const { bare, api, growth } = times[direction]
    const rate = (ms: number): number => targets.bytes / 1e3 / ms
    return {
      direction,
      bareMegabytesPerSecond: rate(median(bare)),
      apiMegabytesPerSecond: rate(median(api)),
      share: median(bare) / median(api),
      shareBest: Math.min(...bare) / Math.min(...api),
      growthBytes: growth.length === 0 ? null : Math.max(...growth),
    }
  })
}

async function timed(work: () => Promise<void>): Promise<number> {
  const startedMs = performance.now()
  await work()
  return performance.now() - startedMs
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
}

async function transferBare(direction: Row['direction'], targets: Targets): Promise<void> {
  const { port, path } = targets.bare
  if (direction === 'download') return download({ port, path, headers: {} }, targets)
  const answer = await upload({ port, path, headers: {} }, targets)
  if (answer !== String(targets.bytes)) throw new Error(`the bare server has read ${answer}`)
}

async function transferApi(direction: Row['direction'], targets: Targets): Promise<void> {
  const { port, path, authorization } = targets.api
  if (direction === 'download') {
    return download({ port, path: `${path}/parameters`, headers: { authorization } }, targets)
  }
  const step = { 'outer-step': '0', tokens: '1', loss: '1' }
  const headers = { authorization, 'content-type': 'application/octet-stream', ...step }
  const answer = await upload({ port, path: `${path}/outer-step`, headers }, targets)
  // Read to its last value, and no further.
  if (!answer.includes('not finite')) throw new Error(`unexpected answer of the daemon: ${answer}`)
}

interface Call {
  port: number
  path: string
  headers: Record<string, string>
}

async function upload({ port, path, headers }: Call, { head, bytes }: Targets): Promise<string> {
  const length = { 'content-length': String(bytes) }
  const outgoing = request({ port, path, method: 'POST', headers: { ...headers, ...length } })
  const answered = responseOf(outgoing)
  const slice = new Uint8Array(SLICE_BYTES)
  const last = new Uint8Array(SLICE_BYTES)
  new DataView(last.buffer).setFloat32(SLICE_BYTES - 4, Number.NaN, true)
  outgoing.write(head)
  for (let sent = head.length; sent < bytes; sent += SLICE_BYTES) {
    const piece = sent + SLICE_BYTES < bytes ? slice : last
    if (!outgoing.write(piece)) await once(outgoing, 'drain')
  }
  outgoing.end()
  const incoming = await answered
  let text = ''
  for await (const piece of incoming) text += String(piece)
  return text
}

function responseOf(outgoing: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    outgoing.once('response', resolve)
    outgoing.once('error', reject)
  })
}

async function download({ port, path, headers }: Call, { bytes }: Targets): Promise<void> {
  const outgoing = request({ port, path, headers })
  outgoing.end()
  const incoming = await responseOf(outgoing)
  let received = 0
  incoming.on('data', (piece: Buffer) => (received += piece.length))
  await once(incoming, 'end')
  if (received !== bytes) throw new Error(`${received} of ${bytes} bytes came`)
}

/** Watches a process's resident memory; null where the system does not tell. */
function watchMemory(pid: number): { stop: () => number | null } {
  const before = residentBytes(pid)
  let most = before ?? 0
  const timer = setInterval(() => {
    most = Math.max(most, residentBytes(pid) ?? 0)
  }, SAMPLE_MS)
  return {
    stop() {
      clearInterval(timer)
      return before === null ? null : Math.max(0, most - before)
    },
  }
}

function residentBytes(pid: number): number | null {
  try {
    const kibibytes = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return kibibytes === undefined ? null : 1024 * Number(kibibytes)
  } catch {
    return null
  }
}

function findingsOf(rows: readonly Row[], bytes: number): Finding[] {
  return rows.flatMap(({ direction, share, growthBytes }) => {
    const speed: Finding = {
      bar: 'speed',
      configuration: `${direction}, of bare node:http`,
      figure: share,
      relation: '>=',
      limit: LEAST_SHARE,
      unit: 'share',
    }
    if (growthBytes === null) return [speed]
    const memory: Finding = {
      bar: 'memory',
      configuration: `${direction}, growth as a share of the bytes moved`,
      figure: growthBytes / bytes,
      relation: '<=',
      limit: LARGEST_GROWTH,
      unit: 'share',
    }
    return [speed, memory]
  })
}

interface Report {
  mebibytes: number
  rounds: number
  rows: readonly Row[]
  findings: readonly Finding[]
}

function jsonOf({ findings, ...report }: Report): object {
  const bars = findings.map((finding) => Object.assign({ pass: isMet(finding) }, finding))
  return { bench: name, ...report, bars }
}

function textOf({ mebibytes, rounds, rows, findings }: Report): string {
  const columns: Column<Row>[] = [
    { title: `${mebibytes} MiB`, cell: ({ direction }) => direction },
    {
      title: 'bare MB/s',
      align: 'right',
      cell: (row) => row.bareMegabytesPerSecond.toFixed(0),
    },
    { title: 'API MB/s', align: 'right', cell: (row) => row.apiMegabytesPerSecond.toFixed(0) },
    { title: 'share', align: 'right', cell: (row) => row.share.toFixed(2) },
    { title: 'of the best', align: 'right', cell: (row) => row.shareBest.toFixed(2) },
    {
      title: 'growth MB',
      align: 'right',
      cell: ({ growthBytes }) => (growthBytes === null ? '-' : (growthBytes / 1e6).toFixed(0)),
    },
  ]
  return [
    formatTable(columns, rows),
    `Medians of ${rounds} rounds.`,
    '',
    formatTable(FINDING_COLUMNS, findings),
  ].join('\n')
}
