/** Daemons on the hosts of a laboratory. */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { openSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { raceSignal, systemClock } from '../../src/clock.ts'
import type { AgentCommand } from './agent.ts'
import type { Lab, LabNat } from './lab.ts'

const AGENT = join(import.meta.dirname, 'agent.ts')
const START_MS = 60_000
const READY_MS = 60_000
/** Daemons started at once: each takes a processor for some seconds. */
const STARTS = 3

const lineSchema = z.union([
  z.object({ ready: z.object({ peerId: z.string(), addresses: z.array(z.string()) }) }),
  z.object({ id: z.number(), value: z.unknown() }),
  z.object({ id: z.number(), fault: z.string() }),
])

export interface Host {
  readonly node: string
  readonly peerId: string
  readonly addresses: string[]
  ask(command: AgentCommand, deadlineMs?: number): Promise<unknown>
  end(signal?: NodeJS.Signals): Promise<void>
}

/** `settings`: `key=value` of the config. The daemon's log is `<node>.log` in `folder`. */
export async function startHost(
  lab: Lab,
  node: string,
  folder: string,
  settings: readonly string[] = [],
): Promise<Host> {
  const fixed = ['api.port=0', 'engine.threads=1', 'log.format=json', 'log.level=debug']
  const argv = [process.execPath, AGENT, join(folder, node), ...fixed, ...settings]
  const [file, rest] = lab.on(node, argv)
  const log = openSync(join(folder, `${node}.log`), 'a')
  const child = spawn(file, rest, { stdio: ['pipe', 'pipe', log] })
  const answers = createAnswers(child, node)
  const { peerId, addresses } = await raceSignal(
    answers.ready,
    systemClock.deadline(START_MS, `the daemon on ${node}`),
  )
  return {
    node,
    peerId,
    addresses,
    async ask(command, deadlineMs = 60_000) {
      const limit = systemClock.deadline(deadlineMs, `"${command.do}" on ${node}`)
      return await raceSignal(answers.ask(command), limit)
    },
    async end(signal = 'SIGTERM') {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill(signal)
      await once(child, 'close')
    },
  }
}

interface Answers {
  ready: Promise<{ peerId: string; addresses: string[] }>
  ask(command: AgentCommand): Promise<unknown>
}

function createAnswers(child: ChildProcess, node: string): Answers {
  const pending = new Map<number, PromiseWithResolvers<unknown>>()
  const ready = Promise.withResolvers<{ peerId: string; addresses: string[] }>()
  let asked = 0
  if (child.stdout === null || child.stdin === null) throw new Error('no pipes')
  createInterface({ input: child.stdout }).on('line', (text) => {
    const line = lineSchema.parse(JSON.parse(text))
    if ('ready' in line) return ready.resolve(line.ready)
    const answer = pending.get(line.id)
    pending.delete(line.id)
    if ('fault' in line) return answer?.reject(new Error(`${node}: ${line.fault}`))
    return answer?.resolve(line.value)
  })
  child.once('close', () => {
    const gone = new Error(`the daemon on ${node} has ended: see its log`)
    ready.reject(gone)
    for (const answer of pending.values()) answer.reject(gone)
  })
  ready.promise.catch(() => {})
  const { stdin } = child
  return {
    ready: ready.promise,
    ask(command) {
      const answer = Promise.withResolvers<unknown>()
      const id = ++asked
      pending.set(id, answer)
      stdin.write(`${JSON.stringify({ id, command })}\n`)
      return answer.promise
    },
  }
}

/** Public nodes that know each other; the first addresses that others need to begin with. */
export async function startPublics(
  lab: Lab,
  folder: string,
  count: number,
): Promise<{ publics: Host[]; bootstrap: string }> {
  const publics: Host[] = []
  const addresses: string[] = []
  for (let index = 1; index <= count; index++) {
    const settings = [
      'public=true',
      ...(addresses.length > 0 ? [`bootstrap=${addresses.join(',')}`] : []),
    ]
    const host = await startHost(lab, `pub${index}`, folder, settings)
    publics.push(host)
    addresses.push(...entryAddresses(index, host.peerId))
  }
  return { publics, bootstrap: addresses.join(',') }
}

/** Of public node `index`: the usual port, and the one that all networks let through. */
function entryAddresses(index: number, peerId: string): string[] {
  return [4010, 443].map((port) => `/ip4/11.0.${10 + index}.11/tcp/${port}/p2p/${peerId}`)
}

/** One host behind each router, so many at a time. */
export async function startHosts(
  lab: Lab,
  lans: readonly LabNat[],
  folder: string,
  bootstrap: string,
  settings: readonly string[] = [],
): Promise<Host[]> {
  const all = [`bootstrap=${bootstrap}`, ...settings]
  const hosts: Host[] = Array.from({ length: lans.length })
  let next = 0
  const worker = async (): Promise<void> => {
    for (let lan = next++; lan < lans.length; lan = next++) {
      hosts[lan] = await startHost(lab, `h${lan + 1}`, folder, all)
    }
  }
  await Promise.all(Array.from({ length: STARTS }, worker))
  return hosts
}

const statusSchema = z.object({
  reachability: z.string(),
  nat: z.string(),
  relays: z.array(z.string()),
})

/** Within reach: dialled by others, or behind two relays. */
export async function untilReady(host: Host, type: LabNat | undefined): Promise<void> {
  const limit = systemClock.deadline(READY_MS, `${host.node} (${type}) getting within reach`)
  for (;;) {
    const { reachability, relays, nat } = statusSchema.parse(await host.ask({ do: 'status' }))
    const isReachable = reachability === 'public' || reachability === 'mapped'
    if (nat !== 'unknown' && (isReachable || relays.length === 2)) return
    await systemClock.sleep(250, limit)
  }
}
