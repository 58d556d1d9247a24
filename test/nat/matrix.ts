/**
 * The matrix: every type of NAT against every other one, with real daemons.
 *
 * For each pair of hosts that have never met, the first calls the second by its peer id alone. Measured from that moment:
 * until 64 KiB have gone there and back, on whatever path, and until there is a direct link. Then both average 256 KiB of
 * parameters: a round.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { messageOf } from '../../src/errors.ts'
import { startHosts, startPublics, untilReady } from './host.ts'
import type { Host } from './host.ts'
import { NAT_TYPES, openLab } from './lab.ts'
import type { LabNat } from './lab.ts'

const FIRST_BYTES = 64 << 10
const DIRECT_MS = 20_000
/** As long as it is looked whether a direct path comes up where none is to be expected. */
const HOPELESS_MS = 5_000
const ROUND_MS = 40_000

export interface Pair {
  from: LabNat
  to: LabNat
}

export interface PairResult extends Pair {
  /** They had met before, through the DHT that one of them serves: then the times say little. */
  hadMet: boolean
  firstDataMs: number | null
  directMs: number | null
  transport: string | null
  hasAveraged: boolean
  fault: string | null
}

export interface MatrixOptions {
  pairs: readonly Pair[]
  delayMs: number
  /** Ways through NATs that the hosts try, separated by commas; all when not given. */
  punch?: string | undefined
  onResult: (result: PairResult) => void
  signal?: AbortSignal | undefined
  /** Keeps the logs of the daemons here. */
  folder?: string | undefined
}

/** Whether a hole can be made, or one side be dialled. What remains has no way but a relay. */
export function canBeDirect({ from, to }: Pair): boolean {
  const types = [from, to]
  // Nobody but public nodes listens on a port that a web-only firewall lets out.
  if (types.includes('webonly')) return false
  const isHard = (type: LabNat): boolean => type === 'symmetric' || type === 'cgnat'
  if (types.every(isHard)) return false
  return !(types.some(isHard) && types.includes('udpblocked'))
}

export function allPairs(): Pair[] {
  return NAT_TYPES.flatMap((from) => NAT_TYPES.map((to) => ({ from, to })))
}

export async function runMatrix(options: MatrixOptions): Promise<PairResult[]> {
  const { pairs, delayMs, punch, onResult } = options
  if (pairs.length === 0) return []
  const callers = NAT_TYPES.filter((type) => pairs.some(({ from }) => from === type))
  const called = NAT_TYPES.filter((type) => pairs.some(({ to }) => to === type))
  const lans = [...callers, ...called]
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lab = openLab({ lans, publics: 2, delayMs })
  const hosts: Host[] = []
  try {
    const { publics, bootstrap } = await startPublics(lab, folder, 2)
    hosts.push(...publics)
    const settings = punch === undefined ? [] : [`punch=${punch}`]
    const started = await startHosts(lab, lans, folder, bootstrap, settings)
    hosts.push(...started)
    await Promise.all(started.map((host, index) => untilReady(host, lans[index])))
    const results: PairResult[] = []
    for (const [index, pair] of pairs.entries()) {
      options.signal?.throwIfAborted()
      const from = started[callers.indexOf(pair.from)]
      const to = started[callers.length + called.indexOf(pair.to)]
      if (from === undefined || to === undefined) throw new Error('a pair without hosts')
      const result = await tryPair(pair, from, to, index)
      results.push(result)
      onResult(result)
    }
    return results
  } finally {
    await Promise.all(hosts.map((host) => host.end()))
    lab.close()
    if (options.folder === undefined) rmSync(folder, { recursive: true, force: true })
  }
}

const directSchema = z.object({ transport: z.string(), ms: z.number() }).nullable()
const averageSchema = z.object({ mean: z.number(), peers: z.array(z.string()) })

async function tryPair(pair: Pair, from: Host, to: Host, index: number): Promise<PairResult> {
  const result: PairResult = {
    ...pair,
    hadMet: false,
    firstDataMs: null,
    directMs: null,
    transport: null,
    hasAveraged: false,
    fault: null,
  }
  try {
    const peer = to.peerId
    result.hadMet = z.array(z.unknown()).parse(await from.ask({ do: 'links', peer })).length > 0
    const direct = from
      .ask({ do: 'untilDirect', peer, waitMs: canBeDirect(pair) ? DIRECT_MS : HOPELESS_MS })
      .then((found) => directSchema.parse(found))
    direct.catch(() => {})
    const firstDataMs = await from.ask({ do: 'call', peer, bytes: FIRST_BYTES })
    result.firstDataMs = z.number().parse(firstDataMs)
    const round = { do: 'average', group: `pair-${index}`, round: 0, waitMs: ROUND_MS } as const
    const means = await Promise.all([
      from.ask({ ...round, value: 1 }).then((mean) => averageSchema.parse(mean)),
      to.ask({ ...round, value: 2 }).then((mean) => averageSchema.parse(mean)),
    ])
    result.hasAveraged = means.every(({ mean, peers }) => mean === 1.5 && peers.length === 2)
    const found = await direct
    result.directMs = found?.ms ?? null
    result.transport = found?.transport ?? 'relay'
  } catch (thrown) {
    result.fault = messageOf(thrown)
  }
  return result
}
