/**
 * `npm run test:nat`: the matrix of NATs, then what goes wrong under way. `--only matrix` or `disturbances`;
 * `--subset SEED`, `--pairs FROM:TO,…`: some pairs; `--punch WAY,…`: these ways through NATs only, of tcp, udp, webrtc;
 * `--delay MS`, `--json`, `--logs FOLDER`.
 */
import { parseArgs } from 'node:util'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { DISTURBANCES, runDisturbance } from './disturbances.ts'
import type { DisturbanceResult } from './disturbances.ts'
import { messageOf } from '../../src/errors.ts'
import { hasUpnp, NAT_TYPES, whyNoLab } from './lab.ts'
import { runIp6, runOpenIp6 } from './ip6.ts'
import { allPairs, runMatrix } from './matrix.ts'
import type { Pair, PairResult } from './matrix.ts'
import { runOneLan } from './one-lan.ts'
import { runPortForwarding } from './port-forwarding.ts'
import { subsetOf } from './subset.ts'

/** Of all 64 pairs: what prototypes reached. */
const DIRECT_MIN = 37

const COLUMN = 18

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    subset: { type: 'string' },
    pairs: { type: 'string' },
    punch: { type: 'string' },
    delay: { type: 'string', default: '0' },
    logs: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
})

function chosenPairs(): Pair[] {
  if (values.subset !== undefined) return subsetOf(values.subset)
  if (values.pairs === undefined) return allPairs()
  const names = values.pairs.split(',')
  return allPairs().filter(({ from, to }) => names.includes(`${from}:${to}`))
}

function line(result: PairResult): string {
  const { from, to, hadMet, firstDataMs, directMs, transport, hasAveraged, fault } = result
  const path =
    directMs === null ? 'relayed' : `direct ${transport} after ${Math.round(directMs)} ms`
  const first = firstDataMs === null ? 'no data' : `first data after ${Math.round(firstDataMs)} ms`
  const round = hasAveraged ? 'round ok' : 'NO ROUND'
  return `${`${from} > ${to}${hadMet ? ' (met)' : ''}`.padEnd(38)} ${first}, ${path}, ${round}${fault === null ? '' : `: ${fault}`}`
}

/** `D udx 85/1261`: direct, milliseconds to the first data (by a relay, say) and to the direct path; `*`: they had met. */
function matrix(results: readonly PairResult[]): string[] {
  const cell = (result: PairResult): string => {
    const { fault, hadMet, hasAveraged, firstDataMs, directMs, transport } = result
    if (fault !== null || !hasAveraged || firstDataMs === null) return 'FAILED'
    const first = Math.round(firstDataMs)
    if (directMs === null) return `R ${first}`
    return hadMet ? `D ${transport} *` : `D ${transport} ${first}/${Math.round(directMs)}`
  }
  const header = ['', ...NAT_TYPES].map((name) => name.padEnd(COLUMN)).join('')
  const rows = NAT_TYPES.map((from) => {
    const cells = NAT_TYPES.map((to) => {
      const result = results.find((candidate) => candidate.from === from && candidate.to === to)
      return result === undefined ? '' : cell(result)
    })
    return [from, ...cells].map((text) => text.padEnd(COLUMN)).join('')
  })
  return [header, ...rows]
}

const why = whyNoLab()
if (why !== undefined) {
  console.error(`no NAT laboratory here: ${why}`)
  process.exit(1)
}
if (values.logs !== undefined) mkdirSync(values.logs, { recursive: true })
// Ends the hosts, and the laboratory with them.
const stopping = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stopping.abort())
const isAllWanted =
  values.only !== 'matrix' &&
  [values.pairs, values.subset, values.punch].every((value) => value === undefined)
const pairs = values.only === 'disturbances' ? [] : chosenPairs()
const results = await runMatrix({
  signal: stopping.signal,
  pairs,
  delayMs: Number(values.delay),
  punch: values.punch,
  folder: values.logs,
  onResult: (result) => console.error(line(result)),
})
const disturbed = await disturbances()
const connected = results.filter(({ fault, hasAveraged }) => fault === null && hasAveraged).length
const direct = results.filter(({ directMs }) => directMs !== null).length
const said = await others()
const survived = disturbed.filter(({ fault }) => fault === null).length
if (values.json) console.log(JSON.stringify({ results, connected, direct, disturbed, said }))
else {
  for (const row of matrix(results)) console.log(row.trimEnd())
  console.log(`${connected} of ${results.length} connected and averaged, ${direct} direct`)
  console.log(`${survived} of ${disturbed.length} disturbances without a loss`)
  for (const { text } of said) console.log(text)
}
const isWhole = pairs.length === allPairs().length && values.punch === undefined
const isDirectEnough = !isWhole || direct >= DIRECT_MIN
const isFine =
  connected === results.length &&
  survived === disturbed.length &&
  isDirectEnough &&
  said.every(({ isFine: isThisFine }) => isThisFine)
process.exitCode = isFine ? 0 : 1

interface Said {
  isFine: boolean
  text: string
}

/** A router with UPnP, where miniupnpd is installed, and two hosts of one LAN. */
async function others(): Promise<Said[]> {
  if (!isAllWanted) return []
  const forwarding = 'port forwarding by the router'
  const skipped = { isFine: true, text: `${forwarding}: skipped, no miniupnpd here` }
  const after = (ms: number): string => `after ${Math.round(ms)} ms`
  return [
    await say('one LAN', async (folder) => {
      const { directMs, address } = await runOneLan(folder)
      return `direct ${address.split('/p2p/')[0]} ${after(directMs)}`
    }),
    await say('IPv6 behind firewalls, IPv4 behind symmetric NATs', (folder) =>
      byIp6('both', folder),
    ),
    await say('IPv6 behind firewalls alone', (folder) => byIp6('alone', folder)),
    await say('open IPv6, a caller without', async (folder) => {
      const { relays } = await runOpenIp6(folder)
      return `reached through a relay, ${relays} held`
    }),
    hasUpnp()
      ? await say(forwarding, async (folder) => {
          const { mappedMs, transport, directMs } = await runPortForwarding(folder)
          return `reachable ${after(mappedMs)}, direct ${transport} ${after(directMs)}`
        })
      : skipped,
  ]
}

async function byIp6(which: 'both' | 'alone', folder: string | undefined): Promise<string> {
  const { transport, directMs } = await runIp6(which, folder)
  return `direct ${transport} by IPv6 after ${Math.round(directMs)} ms`
}

async function say(
  what: string,
  run: (folder: string | undefined) => Promise<string>,
): Promise<Said> {
  stopping.signal.throwIfAborted()
  try {
    return { isFine: true, text: `${what}: ${await run(folderOf(what))}` }
  } catch (thrown) {
    return { isFine: false, text: `${what}: FAILED: ${messageOf(thrown)}` }
  }
}

function folderOf(what: string): string | undefined {
  const folder = values.logs && join(values.logs, what.replaceAll(' ', '-'))
  if (folder !== undefined) mkdirSync(folder, { recursive: true })
  return folder
}

async function disturbances(): Promise<DisturbanceResult[]> {
  const told: DisturbanceResult[] = []
  for (const disturbance of isAllWanted ? DISTURBANCES : []) {
    stopping.signal.throwIfAborted()
    const result = await runDisturbance(disturbance, folderOf(disturbance))
    told.push(result)
    console.error(disturbanceLine(result))
  }
  return told
}

function disturbanceLine(result: DisturbanceResult): string {
  const { disturbance, before, after, rounds, averaged, longestMs, usualMs, fault } = result
  const seconds = (ms: number): string => (ms / 1000).toFixed(1)
  const took = `longest round ${seconds(longestMs)} s (else ${seconds(usualMs)} s)`
  const ended = fault === null ? 'nothing lost' : `FAILED: ${fault}`
  return `${disturbance.padEnd(18)} ${before} > ${after}, ${took}, ${averaged} of ${rounds} averaged, ${ended}`
}
