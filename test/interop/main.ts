/**
 * `npm run test:interop`: against a stock go-libp2p node with the DHT of IPFS, as kubo has it. Builds it with the Go that
 * is on the PATH (a minute, and the modules are fetched, the first time).
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { noise } from '@libp2p/noise'
import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import { nodeEncrypters } from '../../node/net/tls.ts'
import { nodeTransports } from '../../node/net/transports.ts'
import { systemClock } from '../../src/clock.ts'
import { createNetwork } from '../../src/net/host.ts'
import type { NetworkOptions } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import { cidOf } from '../../src/store/content.ts'

const SOURCE = join(import.meta.dirname, 'go-peer')
const WAIT_MS = 20_000

interface GoPeer {
  peer: string
  addresses: string[]
  ask(command: { do: string; address?: string; cid?: string }): Promise<unknown>
}

const helloSchema = z.object({ peer: z.string(), addresses: z.array(z.string()) })
const answerSchema = z.object({ value: z.unknown(), fault: z.string().optional() })

function build(folder: string): string {
  const binary = join(folder, 'go-peer')
  const { status, error, stderr } = spawnSync('go', ['build', '-o', binary, '.'], {
    cwd: SOURCE,
    encoding: 'utf8',
  })
  if (error !== undefined) throw new Error('go is not on the PATH: install it to run this test')
  if (status !== 0) throw new Error(`go build: ${stderr}`)
  return binary
}

async function startGoPeer(binary: string): Promise<GoPeer & { end(): void }> {
  const child = spawn(binary, [], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const line = async (): Promise<unknown> => {
    const { value, done } = await lines.next()
    if (done === true) throw new Error('the Go peer has ended')
    return JSON.parse(value)
  }
  return {
    ...helloSchema.parse(await line()),
    async ask(command) {
      child.stdin.write(`${JSON.stringify(command)}\n`)
      const { value, fault } = answerSchema.parse(await line())
      if (fault !== undefined) throw new Error(`${command.do}: ${fault}`)
      return value
    },
    end: () => void child.kill(),
  }
}

const running: (() => unknown)[] = []

async function startShoal(options: Partial<NetworkOptions> = {}): Promise<Network> {
  const network = await createNetwork({
    identity: await createIdentity(),
    transports: nodeTransports(),
    connectionEncrypters: nodeEncrypters(),
    listen: ['/ip4/127.0.0.1/tcp/0'],
    dhtProtocol: '/ipfs/kad/1.0.0',
    ...options,
  })
  running.push(() => network.stop())
  return network
}

async function until(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const limit = systemClock.deadline(WAIT_MS, what)
  while (!(await check())) await systemClock.sleep(100, limit)
}

async function finds(network: Network, cid: CID, peer: string): Promise<boolean> {
  for await (const found of network.discovery.find(cid)) if (found === peer) return true
  return false
}

const securitySchema = z.array(z.object({ security: z.string(), muxer: z.string() }))
const identifiedSchema = z.object({ agent: z.string(), protocols: z.array(z.string()) })
/** Go's empty list is null. */
const peersSchema = z
  .array(z.string())
  .nullable()
  .transform((peers) => peers ?? [])

/** What Go says that its connection to `shoal` is made of. */
async function made(go: GoPeer, shoal: Network): Promise<string> {
  let text: string | undefined
  await until('the connection', async () => {
    const states = await go.ask({ do: 'security', address: shoal.peerId })
    const [state] = securitySchema.parse(states)
    text = state && `${state.security} ${state.muxer}`
    return text !== undefined
  })
  return text ?? ''
}

async function dialled(go: GoPeer, to: Network): Promise<string> {
  await go.ask({ do: 'connect', address: to.addresses()[0] ?? '' })
  return await made(go, to)
}

const CASES: Record<string, (binary: string) => Promise<string>> = {
  async 'Go dials us: TLS, yamux, identify, ping'(binary) {
    const go = await startGo(binary)
    const shoal = await startShoal()
    const wire = await dialled(go, shoal)
    await until('identify', async () => (await identified(go, shoal)).agent === 'shoal')
    const { protocols } = await identified(go, shoal)
    if (!protocols.includes('/shoal/rpc/1/control')) throw new Error(`it knows ${protocols.join()}`)
    const rttMs = z.number().parse(await go.ask({ do: 'ping', address: shoal.peerId }))
    return `${wire}, ping ${rttMs.toFixed(1)} ms`
  },
  async 'Go dials us where there is noise only'(binary) {
    const go = await startGo(binary)
    return await dialled(go, await startShoal({ connectionEncrypters: [noise()] }))
  },
  async 'we dial Go, by TCP and by WebSocket'(binary) {
    const go = await startGo(binary)
    const ways: string[] = []
    for (const address of go.addresses) {
      const shoal = await startShoal()
      await shoal.connect(address)
      ways.push(`${shoal.links()[0]?.transport} ${await made(go, shoal)}`)
      await shoal.stop()
    }
    return ways.join(', ')
  },
  async 'Go finds what we provide in its DHT'(binary) {
    const go = await startGo(binary)
    const shoal = await startShoal({ bootstrap: go.addresses.slice(0, 1) })
    const cid = await cidOf(new TextEncoder().encode('from shoal'), 'raw')
    shoal.discovery.provide(cid)
    const find = async (): Promise<boolean> => {
      const found = await go.ask({ do: 'find', cid: cid.toString() })
      return peersSchema.parse(found).includes(shoal.peerId)
    }
    await until('the record', find)
    return 'found'
  },
  async 'we find, and reach, what Go provides'(binary) {
    const [go, other] = [await startGo(binary), await startGo(binary)]
    await other.ask({ do: 'connect', address: go.addresses[0] ?? '' })
    await until('its table', async () =>
      peersSchema.parse(await other.ask({ do: 'table' })).includes(go.peer),
    )
    const cid = await cidOf(new TextEncoder().encode('from go'), 'raw')
    await other.ask({ do: 'provide', cid: cid.toString() })
    const shoal = await startShoal({ bootstrap: go.addresses.slice(0, 1) })
    await until('the provider', () => finds(shoal, cid, other.peer))
    await shoal.connect(other.peer)
    return 'found by its record, dialled by its id'
  },
  async 'two of us meet in its DHT, and it serves none of our calls'(binary) {
    const go = await startGo(binary)
    const bootstrap = go.addresses.slice(0, 1)
    const [a, b] = [await startShoal({ bootstrap }), await startShoal({ bootstrap })]
    const cid = await cidOf(new TextEncoder().encode('a run'), 'raw')
    a.discovery.provide(cid)
    await until('each other', () => finds(b, cid, a.peerId))
    a.rpc.handle('test/echo', async (request) => request)
    await b.rpc.call(a.peerId, 'test/echo', Uint8Array.of(1))
    if (b.connectedPeers().includes(go.peer)) throw new Error('Go is taken for one of us')
    return 'found and called'
  },
  async 'Go relays for two that nobody can dial'(binary) {
    const go = await startGo(binary)
    const hidden = { listen: [], bootstrap: go.addresses.slice(0, 1) }
    const [a, b] = [await startShoal(hidden), await startShoal(hidden)]
    await until('reservations', () => [a, b].every((node) => node.relays().includes(go.peer)))
    b.rpc.handle('test/echo', async (request) => request)
    await a.rpc.call(b.peerId, 'test/echo', new Uint8Array(10_000))
    return a.links().some(({ direct }) => !direct) ? 'relayed' : 'direct'
  },
}

async function identified(go: GoPeer, shoal: Network): Promise<z.infer<typeof identifiedSchema>> {
  return identifiedSchema.parse(await go.ask({ do: 'identified', address: shoal.peerId }))
}

async function startGo(binary: string): Promise<GoPeer> {
  const go = await startGoPeer(binary)
  running.push(() => go.end())
  return go
}

const folder = mkdtempSync(join(tmpdir(), 'shoal-interop-'))
let failures = 0
try {
  const binary = build(folder)
  for (const [what, check] of Object.entries(CASES)) {
    try {
      console.log(`ok      ${what}: ${await check(binary)}`)
    } catch (thrown) {
      failures++
      console.log(`FAILED  ${what}:`, thrown)
    }
    for (const end of running.splice(0).toReversed()) await end()
  }
} finally {
  rmSync(folder, { recursive: true, force: true })
}
process.exit(failures === 0 ? 0 : 1)
