/**
 * What goes wrong under way, with real daemons: the relay in use is killed, a WAN link is cut for a while, a router comes
 * back without its state, a NAT changes its type. Two peers train meanwhile, round after round.
 *
 * Asked for: each round takes no longer than the round's deadline, every one is an average of both, and both come out at
 * the value that so many averages lead to: nothing is lost.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { systemClock } from '../../src/clock.ts'
import { messageOf } from '../../src/errors.ts'
import { startHosts, startPublics, untilReady } from './host.ts'
import type { Host } from './host.ts'
import { openLab } from './lab.ts'
import type { Lab, LabNat } from './lab.ts'

/** Of the run: the most that a round may take. */
const ROUND_MS = 20_000
/** Rounds before a disturbance, and after it is over. */
const ROUNDS = 4
const STEPS = [1, 3] as const
const CUT_MS = 6_000
const RESTART_MS = 3_000
const PUBLICS = 3
const SETTLE_MS = 90_000

export const DISTURBANCES = [
  'relay killed',
  'relay silent',
  'link cut',
  'router restarted',
  'NAT changed',
] as const
export type Disturbance = (typeof DISTURBANCES)[number]

export interface DisturbanceResult {
  disturbance: Disturbance
  before: string
  after: string
  rounds: number
  averaged: number
  /** Of the rounds that were under way meanwhile. */
  longestMs: number
  usualMs: number
  fault: string | null
}

interface Scene {
  lab: Lab
  publics: readonly Host[]
  hosts: readonly [Host, Host]
}

const NATS: Record<Disturbance, readonly [LabNat, LabNat]> = {
  'relay killed': ['symmetric', 'symmetric'],
  'relay silent': ['symmetric', 'cgnat'],
  'link cut': ['portrestricted', 'portrestricted'],
  'router restarted': ['portrestricted', 'restricted'],
  'NAT changed': ['portrestricted', 'portrestricted'],
}

export async function runDisturbance(
  disturbance: Disturbance,
  kept: string | undefined,
): Promise<DisturbanceResult> {
  const folder = kept ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lans = NATS[disturbance]
  const lab = openLab({ lans, publics: PUBLICS })
  const started: Host[] = []
  try {
    const { publics, bootstrap } = await startPublics(lab, folder, PUBLICS)
    started.push(...publics)
    const [first, second] = await startHosts(lab, lans, folder, bootstrap)
    if (first === undefined || second === undefined) throw new Error('two hosts')
    started.push(first, second)
    await Promise.all([untilReady(first, lans[0]), untilReady(second, lans[1])])
    return await disturb(disturbance, { lab, publics, hosts: [first, second] })
  } finally {
    await Promise.all(started.map((host) => host.end()))
    lab.close()
    if (kept === undefined) rmSync(folder, { recursive: true, force: true })
  }
}

const runSchema = z.object({ id: z.string(), link: z.string() })
const reportSchema = z.object({
  rounds: z.array(
    z.object({
      outerStep: z.number(),
      outcome: z.string(),
      tookMs: z.number(),
      endedAtMs: z.number(),
    }),
  ),
  value: z.number().nullable(),
  fault: z.string().nullable(),
})
type Report = z.infer<typeof reportSchema>

async function disturb(disturbance: Disturbance, scene: Scene): Promise<DisturbanceResult> {
  const [first, second] = scene.hosts
  const created = await first.ask({ do: 'createRun', roundTimeoutMs: ROUND_MS })
  const { id: run, link } = runSchema.parse(created)
  await second.ask({ do: 'joinRun', link })
  for (const [index, host] of scene.hosts.entries()) {
    await host.ask({ do: 'train', run, step: STEPS[index] ?? 0 })
  }
  const begun = await untilRounds(scene, ROUNDS)
  const before = await pathOf(scene)
  const startedAtMs = Date.now()
  let fault: string | null = null
  let reports = begun
  try {
    await carryOut(disturbance, scene)
    const reached = Math.max(...(await reportsOf(scene)).map(({ rounds }) => rounds.length))
    reports = await untilRounds(scene, reached + ROUNDS)
  } catch (thrown) {
    fault = messageOf(thrown)
    reports = await reportsOf(scene)
  }
  const rounds = reports.flatMap((report) => report.rounds)
  const usual = rounds.filter(({ endedAtMs }) => endedAtMs < startedAtMs)
  const disturbed = rounds.filter(({ endedAtMs }) => endedAtMs >= startedAtMs)
  const averaged = rounds.filter(({ outcome }) => outcome === 'averaged').length
  return {
    disturbance,
    before,
    after: await pathOf(scene),
    rounds: rounds.length,
    averaged,
    longestMs: Math.max(...disturbed.map(({ tookMs }) => tookMs)),
    usualMs: Math.max(...usual.slice(2).map(({ tookMs }) => tookMs)),
    fault:
      fault ?? reports.map(({ fault: own }) => own).find((own) => own !== null) ?? lost(reports),
  }
}

/** Every round adds the mean of the two steps, on both sides. */
function lost(reports: readonly Report[]): string | null {
  const mean = (STEPS[0] + STEPS[1]) / 2
  for (const { rounds, value } of reports) {
    const expected = rounds.length * mean
    if (value !== expected) return `after ${rounds.length} rounds ${value} instead of ${expected}`
    if (rounds.some(({ tookMs }) => tookMs > ROUND_MS)) return 'a round took longer than allowed'
  }
  return null
}

async function reportsOf({ hosts }: Scene): Promise<Report[]> {
  return await Promise.all(
    hosts.map(async (host) => reportSchema.parse(await host.ask({ do: 'rounds' }))),
  )
}

async function untilRounds(scene: Scene, count: number): Promise<Report[]> {
  const limit = systemClock.deadline(SETTLE_MS, `${count} rounds of training`)
  for (;;) {
    const reports = await reportsOf(scene)
    const failed = reports.find(({ fault }) => fault !== null)
    if (failed !== undefined) throw new Error(failed.fault ?? '')
    if (reports.every(({ rounds }) => rounds.length >= count)) return reports
    await systemClock.sleep(100, limit)
  }
}

const linksSchema = z.array(
  z.object({ transport: z.string(), direct: z.boolean(), address: z.string() }),
)

async function linksOf({ hosts: [first, second] }: Scene): Promise<z.infer<typeof linksSchema>> {
  return linksSchema.parse(await first.ask({ do: 'links', peer: second.peerId }))
}

async function pathOf(scene: Scene): Promise<string> {
  const links = await linksOf(scene)
  const direct = links.find((link) => link.direct)
  if (direct !== undefined) return `direct ${direct.transport}`
  return links.length > 0 ? 'relayed' : 'none'
}

async function carryOut(disturbance: Disturbance, scene: Scene): Promise<void> {
  const { lab } = scene
  switch (disturbance) {
    case 'relay killed':
      await (await relayInUse(scene)).end('SIGKILL')
      return
    case 'relay silent':
      // Its machine says no farewell.
      lab.run((await relayInUse(scene)).node, ['ip', 'link', 'set', 'eth0', 'down'])
      return
    case 'link cut':
      await untilDirect(scene)
      lab.link(2, 'down')
      await systemClock.sleep(CUT_MS, new AbortController().signal)
      lab.link(2, 'up')
      return
    case 'router restarted':
      await untilDirect(scene)
      // It is away for a while, and all that it knew of connections is gone.
      lab.link(2, 'down')
      lab.setNat(2, 'restricted')
      await systemClock.sleep(RESTART_MS, new AbortController().signal)
      lab.link(2, 'up')
      return
    case 'NAT changed':
      await untilDirect(scene)
      lab.setNat(2, 'symmetric')
      return
    default:
      return disturbance satisfies never
  }
}

async function relayInUse(scene: Scene): Promise<Host> {
  const [link] = await linksOf(scene)
  const { publics } = scene
  const relay = publics.find(({ peerId }) => link?.address.includes(`${peerId}/p2p-circuit`))
  if (relay === undefined) throw new Error(`${link?.address} leads through no relay`)
  return relay
}

async function untilDirect({ hosts: [first, second] }: Scene): Promise<void> {
  const found = await first.ask({ do: 'untilDirect', peer: second.peerId, waitMs: 15_000 })
  if (found === null) throw new Error('no direct path came up')
}
