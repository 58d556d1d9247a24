/**
 * A daemon on a host of the laboratory, and a program beside it that does what the test asks: a command per line on stdin,
 * an answer per line on stdout. It knows the daemon by its local API only.
 */
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { connectDaemon } from '../../node/api/client.ts'
import type { ApiClient } from '../../node/api/client.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { loadConfig } from '../../node/config.ts'
import { runDaemon } from '../../node/daemon.ts'
import type { DaemonReady } from '../../node/daemon.ts'
import { systemClock } from '../../src/clock.ts'
import { messageOf } from '../../src/errors.ts'
import { readTensors, writeSafetensors } from '../../src/tensor/safetensors.ts'
import { createSchema } from '../../src/tensor/schema.ts'
import { createLineRun, startTrainer } from './trainer.ts'
import type { Trainer } from './trainer.ts'

const SERVICE = 'nat-echo'
const LOOK_MS = 25
/** 256 KiB: some flights of packets on any path. */
const SCHEMA = createSchema([{ name: 'weights', shape: [256, 256], decay: true }])

const commandSchema = z.object({
  id: z.number(),
  command: z.discriminatedUnion('do', [
    z.object({ do: z.literal('status') }),
    z.object({ do: z.literal('links'), peer: z.string() }),
    z.object({ do: z.literal('call'), peer: z.string(), bytes: z.number() }),
    z.object({ do: z.literal('untilDirect'), peer: z.string(), waitMs: z.number() }),
    z.object({ do: z.literal('createRun'), roundTimeoutMs: z.number() }),
    z.object({ do: z.literal('joinRun'), link: z.string() }),
    z.object({ do: z.literal('train'), run: z.string(), step: z.number() }),
    z.object({ do: z.literal('rounds') }),
    z.object({
      do: z.literal('average'),
      group: z.string(),
      round: z.number(),
      value: z.number(),
      waitMs: z.number(),
    }),
  ]),
})
export type AgentCommand = z.infer<typeof commandSchema>['command']

let trainer: Trainer | undefined
const [dataDir = '', ...settings] = process.argv.slice(2)
const stopping = new AbortController()
process.on('SIGTERM', () => stopping.abort())
process.stdin.on('end', () => stopping.abort())

function print(line: unknown): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

async function execute(api: ApiClient, command: AgentCommand): Promise<unknown> {
  switch (command.do) {
    case 'status':
      return await api.call(ROUTES.node, {})
    case 'links': {
      const { peers } = await api.call(ROUTES.peers, {})
      return peers.filter(({ peer }) => peer === command.peer)
    }
    case 'call':
      return await callEcho(api, command.peer, command.bytes)
    case 'untilDirect':
      return await untilDirect(api, command.peer, command.waitMs)
    case 'average':
      return await average(api, command)
    case 'createRun':
      return await createLineRun(api, dataDir, command.roundTimeoutMs)
    case 'joinRun':
      return (await api.call(ROUTES.joinRun, { run: command.link })).id
    case 'train':
      trainer ??= startTrainer(api, command.run, command.step, stopping.signal)
      return null
    case 'rounds':
      return trainer?.report()
    default:
      return command satisfies never
  }
}

/** Milliseconds until so many bytes have gone there and come back. Dials when there is no connection. */
async function callEcho(api: ApiClient, peer: string, bytes: number): Promise<number> {
  const startedMs = performance.now()
  const body = new Uint8Array(bytes).fill(7)
  const { content } = await api.download(ROUTES.callService, { peer, service: SERVICE }, { body })
  const reply = await bytesOf(content)
  if (!reply.every((byte) => byte === 7) || reply.length !== bytes) {
    throw new Error(`${reply.length} of ${bytes} bytes came back`)
  }
  return performance.now() - startedMs
}

async function bytesOf(content: AsyncIterable<Uint8Array> | undefined): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  for await (const piece of content ?? []) pieces.push(piece)
  return Buffer.concat(pieces)
}

async function serveEcho(api: ApiClient): Promise<void> {
  while (!stopping.signal.aborted) {
    const { signal } = stopping
    const { output, content } = await api.download(
      ROUTES.serviceRequest,
      { service: SERVICE },
      { signal },
    )
    if (output === undefined) continue
    const body = await bytesOf(content)
    await api.call(ROUTES.serviceReply, { service: SERVICE, id: output.requestId }, { body })
  }
}

/** The transport of the direct link and how long it took; null when there was none in time. */
async function untilDirect(api: ApiClient, peer: string, waitMs: number): Promise<unknown> {
  const startedMs = performance.now()
  while (performance.now() - startedMs < waitMs) {
    const { peers } = await api.call(ROUTES.peers, {})
    const link = peers.find((candidate) => candidate.peer === peer && candidate.direct)
    if (link !== undefined) return { transport: link.transport, ms: performance.now() - startedMs }
    await systemClock.sleep(LOOK_MS, stopping.signal)
  }
  return null
}

async function average(
  api: ApiClient,
  { group, round, value, waitMs }: Extract<AgentCommand, { do: 'average' }>,
): Promise<{ mean: number; peers: string[]; ms: number }> {
  const startedMs = performance.now()
  const { content: body } = writeSafetensors(SCHEMA, new Float32Array(SCHEMA.size).fill(value))
  const input = { group, round, minPeers: 2, waitMs }
  const { output, content } = await api.download(ROUTES.average, input, { body })
  const { parameters } = await readTensors(content ?? [])
  const [mean = Number.NaN] = parameters
  if (parameters.some((element) => element !== mean)) throw new Error('not one mean')
  return { mean, peers: output?.peers ?? [], ms: performance.now() - startedMs }
}

function listen(api: ApiClient): void {
  createInterface({ input: process.stdin }).on('line', (line) => {
    const { id, command } = commandSchema.parse(JSON.parse(line))
    execute(api, command).then(
      (value) => print({ id, value }),
      (thrown: unknown) => print({ id, fault: messageOf(thrown) }),
    )
  })
}

function onReady(ready: DaemonReady): void {
  const api = connectDaemon(dataDir)
  serveEcho(api).catch((thrown: unknown) => {
    if (!stopping.signal.aborted) throw thrown
  })
  listen(api)
  print({ ready })
}

const flags: Record<string, unknown> = { dataDir, mdns: false }
for (const setting of settings) {
  const [key = '', value = ''] = setting.split('=')
  flags[key] = value
}
await runDaemon({ config: loadConfig({ flags, env: {} }), signal: stopping.signal, onReady })
process.exit(0)
