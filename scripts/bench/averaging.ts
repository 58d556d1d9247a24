/**
 * `npm run bench -- averaging`: the benchmark of averaging that hivemind has. Peers with a process and a vector each
 * average in random groups, a few rounds of it; beside it, how long bare sockets take to move the same bytes.
 */
import { availableParallelism, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { createStatusBlock, type StatusBlock } from '../../node/progress.ts'
import { codecs } from '../../src/codec/codec.ts'
import { ShoalError } from '../../src/errors.ts'
import { AVERAGING_CODECS } from '../../src/run/averaging-groups.ts'
import type { Averaging } from '../../src/run/manifest.ts'
import { averagedSchema, openedSchema, type AveragingRequest } from './averaging-peer.ts'
import { addressSchema, readySchema, transferSchema, type PeerRequest } from './net-peer.ts'
import { FINDING_COLUMNS, isMet, type Finding } from './finding.ts'
import { startJsonProcess, type JsonProcess } from './json-process.ts'
import { parseBenchOptions } from './options.ts'
import { formatTable, type Column } from './table.ts'

export const name = 'averaging'
export const summary = '16 peers average 9.5 MB each in groups of 4: success rate and wall time'

export const usage = `npm run bench -- averaging [options]

Processes with a node each, on loopback, average a vector in random groups, five rounds of it. An average counts when
the whole group is in it and all its members have the same mean. Beside it bare TLS moves the bytes of a round.

  --quick         4 peers, 2 rounds
  --peers N       default 16
  --codec NAME    of ${AVERAGING_CODECS.join(', ')} (default fp32)
  --json          one object on stdout
`

/** 9.5 MB of fp32. */
const ELEMENTS = 2_375_000
const GROUP = 4
const NODE = process.execPath
const fileOf = (file: string): string => fileURLToPath(new URL(file, import.meta.url))

interface Options {
  peers: number
  rounds: number
  codec: Averaging['parametersCodec']
  json: boolean
}

interface Round {
  round: number
  seconds: number
  /** Peers whose average was whole. */
  whole: number
  cpuSeconds: number
  faults: string[]
  /** Of bare TLS, to move as many bytes between two processes. */
  bareSeconds: number
}

/** Runs the bench. Returns the exit code: 1 when a bar is missed. Rejects with the signal's reason when aborted. */
export async function run(args: readonly string[], signal: AbortSignal): Promise<number> {
  const options = readOptions(args)
  const status = createStatusBlock(process.stderr)
  const processes: JsonProcess[] = []
  const start = (file: string): JsonProcess => {
    const started = startJsonProcess(NODE, [fileOf(file)])
    processes.push(started)
    return started
  }
  try {
    status.draw([`opening ${options.peers} peers`])
    const bare = await openBare(start, signal)
    const peers = await openPeers(options.peers, start, signal)
    const rounds: Round[] = []
    // In the first one the peers come together: it takes longer.
    for (let round = 1; round <= options.rounds; round++) {
      const averaged = await averageOnce(peers, round, options, signal)
      const measured = { ...averaged, bareSeconds: await bare(bytesPerRound(options)) }
      rounds.push(measured)
      report(status, measured, options)
    }
    status.draw([])
    const findings = [successOf(rounds, options)]
    const text = options.json
      ? `${JSON.stringify({ bench: name, ...options, elements: ELEMENTS, rounds, findings })}\n`
      : textOf(rounds, findings, options)
    process.stdout.write(text)
    return findings.every(isMet) ? 0 : 1
  } finally {
    status.end()
    await Promise.all(processes.map((each) => each.end()))
  }
}

/** Throws `usage`. */
function readOptions(args: readonly string[]): Options {
  const values = parseBenchOptions(name, args, {
    quick: { type: 'boolean' },
    peers: { type: 'string' },
    codec: { type: 'string' },
  })
  const isQuick = values.quick === true
  const peers = Number(values.peers ?? (isQuick ? GROUP : 16))
  if (!Number.isInteger(peers) || peers < GROUP || peers > 32 || peers % GROUP !== 0) {
    throw new ShoalError('usage', `--peers is 4 to 32 in steps of 4, not '${values.peers}'`)
  }
  const codec = AVERAGING_CODECS.find((known) => known === (values.codec ?? 'fp32'))
  if (codec === undefined) {
    throw new ShoalError('usage', `--codec is one of ${AVERAGING_CODECS.join(', ')}`)
  }
  return { peers, rounds: isQuick ? 2 : 5, codec, json: values.json === true }
}

const askPeer = <T>(
  peer: JsonProcess,
  request: AveragingRequest,
  ...rest: [Parameters<typeof peer.ask<T>>[1], AbortSignal]
): Promise<T> => peer.ask(request, ...rest)

async function openPeers(
  count: number,
  start: (file: string) => JsonProcess,
  signal: AbortSignal,
): Promise<JsonProcess[]> {
  const open = async (seed: number, bootstrap: string[]) => {
    const peer = start('averaging-peer.ts')
    const { address } = await askPeer(peer, { do: 'open', seed, bootstrap }, openedSchema, signal)
    return { peer, address }
  }
  const first = await open(0, [])
  const others = Array.from({ length: count - 1 }, (_, index) => open(index + 1, [first.address]))
  return [first, ...(await Promise.all(others))].map(({ peer }) => peer)
}

/** What moves so many bytes between two processes over bare TLS, and resolves to the seconds. */
async function openBare(
  start: (file: string) => JsonProcess,
  signal: AbortSignal,
): Promise<(bytes: number) => Promise<number>> {
  const [source, sink] = [start('net-peer.ts'), start('net-peer.ts')]
  const path = 'raw tls'
  const asks: PeerRequest = { do: 'source', path }
  const { address } = await source.ask(asks, addressSchema, signal)
  const opens: PeerRequest = { do: 'sink', path, address }
  await sink.ask(opens, readySchema, signal)
  return async (bytes) => {
    const moves: PeerRequest = { do: 'transfer', bytes }
    return (await sink.ask(moves, transferSchema, signal)).seconds
  }
}

async function averageOnce(
  peers: readonly JsonProcess[],
  round: number,
  { codec }: Options,
  signal: AbortSignal,
): Promise<Omit<Round, 'bareSeconds'>> {
  const sizes = { elements: ELEMENTS, peers: peers.length, groupSize: GROUP }
  const request = { do: 'average', round, codec, ...sizes } as const
  const startedMs = performance.now()
  const averages = await Promise.all(
    peers.map((peer) => askPeer(peer, request, averagedSchema, signal)),
  )
  const seconds = (performance.now() - startedMs) / 1000
  const meanOf = new Map<string, number>()
  for (const { peers: group, first } of averages) {
    const key = group.join()
    meanOf.set(key, meanOf.get(key) === undefined || meanOf.get(key) === first ? first : NaN)
  }
  const whole = averages.filter(
    ({ peers: group }) => group.length === GROUP && !Number.isNaN(meanOf.get(group.join())),
  ).length
  const cpuSeconds = averages.reduce((sum, each) => sum + each.cpuSeconds, 0)
  const faults = averages.flatMap(({ fault }) => fault ?? [])
  return { round, seconds, whole, cpuSeconds, faults }
}

/** Every peer receives the vectors of the others of its group. */
function bytesPerRound({ peers, codec }: Options): number {
  return peers * (GROUP - 1) * codecs[codec].encodedBytes(ELEMENTS)
}

function successOf(rounds: readonly Round[], { peers }: Options): Finding {
  const whole = rounds.reduce((sum, round) => sum + round.whole, 0)
  return {
    bar: 'issue',
    configuration: `${peers} peers, groups of ${GROUP}, ${rounds.length} rounds: whole averages`,
    figure: whole / (peers * rounds.length),
    relation: '>=',
    limit: 1,
    unit: 'share',
  }
}

function report(status: StatusBlock, measured: Round, { peers }: Options): void {
  const { round, whole, seconds, faults } = measured
  status.print(`round ${round}: ${whole} of ${peers} whole, ${seconds.toFixed(2)} s`)
  for (const fault of faults) status.print(`  ${fault}`)
}

const COLUMNS: readonly Column<Round>[] = [
  { title: 'round', align: 'right', cell: ({ round }) => String(round) },
  { title: 'whole', align: 'right', cell: ({ whole }) => String(whole) },
  { title: 'seconds', align: 'right', cell: ({ seconds }) => seconds.toFixed(2) },
  { title: 'CPU s', align: 'right', cell: ({ cpuSeconds }) => cpuSeconds.toFixed(2) },
  { title: 'bare TLS s', align: 'right', cell: ({ bareSeconds }) => bareSeconds.toFixed(2) },
  {
    title: 'ratio',
    align: 'right',
    cell: ({ seconds, bareSeconds }) => (seconds / bareSeconds).toFixed(1),
  },
]

function textOf(rounds: readonly Round[], findings: readonly Finding[], options: Options): string {
  const total = rounds.reduce((sum, { seconds }) => sum + seconds, 0)
  const [load = 0] = loadavg()
  return [
    `${options.peers} peers, ${(4 * ELEMENTS) / 1e6} MB each, groups of ${GROUP}, codec ${options.codec}: ` +
      `${(bytesPerRound(options) / 1e6).toFixed(0)} MB move in a round`,
    '',
    formatTable(COLUMNS, rounds),
    `${rounds.length} rounds in ${total.toFixed(1)} s; ${availableParallelism()} cores, load ${load.toFixed(1)}`,
    '',
    formatTable(FINDING_COLUMNS, findings),
  ].join('\n')
}
