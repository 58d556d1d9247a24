import { createServer } from 'node:net'
import { noise } from '@libp2p/noise'
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { lpStream } from '@libp2p/utils'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { nodeTransports } from '../../../node/net/transports.ts'
import { systemClock } from '../../../src/clock.ts'
import { ShoalError } from '../../../src/errors.ts'
import { silentLogger } from '../../../src/log.ts'
import { createMetrics } from '../../../src/metrics.ts'
import { hostOf, portOf } from '../../../src/net/addresses.ts'
import { createNetwork } from '../../../src/net/host.ts'
import type { NetworkOptions } from '../../../src/net/host.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import type { PortForwarding } from '../../../src/net/nat.ts'
import type { Network, PeerRpc } from '../../../src/net/network.ts'
import { createOffences } from '../../../src/net/offences.ts'
import { createReachability } from '../../../src/net/reachability.ts'
import { createRpcService } from '../../../src/net/rpc.ts'
import { seededRandom } from '../../../src/random.ts'
import { decodeCbor, encodeCbor } from '../../../src/store/content.ts'
import {
  addressOf,
  createRecorder,
  startMemoryNetwork,
  startPair,
  until,
} from './memory-network.ts'

async function startTcp(
  listen: string[],
  options: Pick<NetworkOptions, 'metrics'> = {},
): Promise<Network> {
  const network = await createNetwork({
    ...options,
    identity: await createIdentity(),
    transports: nodeTransports(),
    listen,
  })
  onTestFinished(() => network.stop())
  return network
}

function ask(caller: Network, called: Network, addresses: unknown): Promise<Uint8Array> {
  return caller.rpc.call(called.peerId, 'net/dial-back', encodeCbor({ addresses }))
}

/** Counts who connects. */
async function startTrap(host: string): Promise<{ port: number; visits: () => number }> {
  let visits = 0
  const server = createServer((socket) => {
    visits++
    socket.destroy()
  })
  await new Promise<void>((resolve) => server.listen(0, host, resolve))
  onTestFinished(() => void server.close())
  const address = server.address()
  return { port: typeof address === 'object' ? (address?.port ?? 0) : 0, visits: () => visits }
}

describe('reachability', () => {
  test('is unknown until somebody comes in', async () => {
    const [client, server] = await startPair()
    await until(() => server.reachability() === 'public')
    expect(client.reachability()).toBe('unknown')
    const other = await startMemoryNetwork()
    await other.connect(addressOf(client))
    await until(() => client.reachability() === 'public')
  })
})

/** What comes from a peer that answers whatever it likes: each call is answered with the last address that it was given. */
async function watchWith(libp2p: Libp2p, onCall: () => Promise<void>) {
  const metrics = createMetrics()
  const logger = silentLogger
  const base = { clock: systemClock, random: seededRandom('reachability'), logger }
  const offences = createOffences({ ...base, metrics, sendAway: () => {} })
  const rpc: PeerRpc = {
    handle: () => () => {},
    async call(_peer, _method, request) {
      const { addresses } = z
        .object({ addresses: z.array(z.string()) })
        .parse(decodeCbor(request, 8192))
      await onCall()
      return encodeCbor({ reached: addresses.at(-1) })
    },
  }
  const reached: string[] = []
  const reachability = createReachability({
    ...base,
    libp2p,
    rpc,
    offences,
    listenAddresses: () => libp2p.getMultiaddrs(),
    onReached: (address) => void reached.push(address.toString()),
    onLost: () => {},
    onChange: () => {},
    isPunched: () => false,
    forwarding: () => undefined,
  })
  onTestFinished(() => reachability.stop())
  return { reachability, reached }
}

async function startRaw(listen: string[]): Promise<Libp2p> {
  const raw = await createLibp2p({
    addresses: { listen },
    transports: nodeTransports(),
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => raw.stop())
  return raw
}

describe('an address of another, claimed by a neighbour', () => {
  const from = multiaddr('/ip4/127.0.1.1/tcp/1')
  const strange = { seen: multiaddr('/ip4/11.0.0.7/tcp/4010'), from }

  test('is not believed while nobody comes in, and a neighbour is asked once at a time', async () => {
    const raw = await startRaw(['/ip4/127.0.0.1/tcp/0'])
    const neighbour = (await createIdentity()).peerId
    let calls = 0
    const { reachability, reached } = await watchWith(raw, async () => void calls++)
    for (let time = 0; time < 100; time++) reachability.ask(neighbour, strange)
    expect(calls).toBe(1)
    const checks = await reachability.check(AbortSignal.timeout(10_000))
    expect(checks).toMatchObject([{ transport: 'tcp', isReached: null, address: null }])
    expect(calls).toBe(2)
    expect(reached).toEqual([])
  })

  test('counts when the neighbour itself has come in', async () => {
    const raw = await startRaw(['/ip4/127.0.0.1/tcp/0'])
    const caller = await startRaw([])
    const other = await startRaw([])
    let dialling = other
    const { reachability, reached } = await watchWith(raw, async () => {
      await dialling.dial(raw.getMultiaddrs(), { force: true })
    })
    const neighbour = caller.peerId.toString()
    const signal = AbortSignal.timeout(10_000)
    reachability.ask(neighbour, { seen: multiaddr('/ip4/127.0.0.1/tcp/1'), from })
    await reachability.check(signal)
    expect(reached).toEqual([])
    dialling = caller
    await reachability.check(signal)
    expect(reached).toHaveLength(1)
  })
})

/** A node that looks for where it can be dialled, and what it has come to believe. */
async function startSeeker(forwarding: () => PortForwarding | undefined = () => undefined) {
  const raw = await startRaw(['/ip4/127.0.0.1/tcp/0'])
  const rpc = await startRpc(raw)
  const believed = new Set<string>()
  const lost: string[] = []
  const { logger, events } = createRecorder()
  const base = { clock: systemClock, random: seededRandom('seeker'), logger }
  const reachability = createReachability({
    ...base,
    libp2p: raw,
    rpc,
    offences: createOffences({ ...base, metrics: createMetrics(), sendAway: () => {} }),
    listenAddresses: () => raw.getMultiaddrs(),
    onReached: (address) => void believed.add(hostOf(address) ?? ''),
    onLost: (address) => void lost.push(hostOf(address) ?? ''),
    onChange: () => {},
    isPunched: () => false,
    forwarding,
  })
  onTestFinished(() => reachability.stop())
  const doubted = (): Record<string, unknown>[] =>
    events.filter(({ event }) => event === 'address_not_believed').map(({ fields }) => fields)
  return { raw, reachability, believed, lost, doubted }
}

async function startRpc(raw: Libp2p): Promise<PeerRpc> {
  const base = { clock: systemClock, logger: silentLogger, metrics: createMetrics() }
  const rpc = await createRpcService({
    ...base,
    libp2p: raw,
    offences: createOffences({ ...base, sendAway: () => {} }),
    connectionTo: (peer, signal) => raw.dial(peerIdFromString(peer), { signal }),
  })
  onTestFinished(() => rpc.stop())
  return rpc
}

/** Comes in where it can, and says that it was somewhere else; or says that nobody answers. */
async function startLiar(host: string, claims: string | undefined) {
  const raw = await startRaw([`/ip4/${host}/tcp/0`])
  const rpc = await startRpc(raw)
  let answers = 0
  let isDenying = false
  rpc.handle('net/dial-back', async (request) => {
    const { addresses } = z
      .object({ addresses: z.array(z.string()) })
      .parse(decodeCbor(request, 8192))
    answers++
    if (claims === undefined || isDenying) {
      throw new ShoalError('peer_unreachable', 'nobody answers')
    }
    const own = addresses.filter((address) => address.startsWith('/ip4/127.0.0.1/'))
    const there = own.map((address) => multiaddr(address))
    await raw.dial(there, { force: true })
    return encodeCbor({ reached: addresses.find((address) => address.includes(claims)) ?? '' })
  })
  return { raw, answers: () => answers, deny: () => void (isDenying = true) }
}

type Seeker = Awaited<ReturnType<typeof startSeeker>>
type Liar = Awaited<ReturnType<typeof startLiar>>

/** The seeker has dialled this neighbour, and hears where it is seen. */
async function meet({ raw, reachability }: Seeker, liar: Liar, seenAt: string): Promise<void> {
  const { remoteAddr: from } = await raw.dial(liar.raw.getMultiaddrs())
  const seen = multiaddr(`/ip4/${seenAt}/tcp/4010`)
  reachability.ask(liar.raw.peerId.toString(), { seen, from })
}

/** Asks again, who is asked being a matter of chance, until it holds. */
async function askUntil({ reachability }: Seeker, check: () => boolean): Promise<void> {
  while (!check()) {
    reachability.recheck()
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

describe('a neighbour that has come in, and lies about where', () => {
  const victim = '10.9.8.7'
  const honest = '127.0.0.1'

  test('is not believed, however many of its network say the same', async () => {
    const seeker = await startSeeker()
    for (const host of ['127.0.1.1', '127.0.1.2', '127.0.1.3']) {
      await meet(seeker, await startLiar(host, victim), victim)
    }
    await askUntil(seeker, () => new Set(seeker.doubted().map(({ peer }) => peer)).size === 3)
    expect(seeker.doubted()[0]).toMatchObject({ hasArrived: true })
    // It could be dialled on this machine: that much the connections prove.
    expect(seeker.reachability.verdict()).toBe('public')
    expect([...seeker.believed]).toEqual([])
    // Nobody else says anything: where else might it be?
    expect(seeker.reachability.outsideHosts()).toEqual([victim])
    await meet(seeker, await startLiar('127.0.8.1', honest), honest)
    await meet(seeker, await startLiar('127.0.9.1', honest), honest)
    expect(seeker.reachability.seenAt()).toEqual([victim, honest])
    expect(seeker.reachability.outsideHosts()).toEqual([honest])
  })

  test('is outvoted by those who see the truth', async () => {
    const seeker = await startSeeker()
    for (const host of ['127.0.2.1', '127.0.3.1']) {
      await meet(seeker, await startLiar(host, honest), honest)
    }
    await askUntil(seeker, () => seeker.believed.has(honest))
    for (const host of ['127.0.4.1', '127.0.5.1']) {
      await meet(seeker, await startLiar(host, victim), victim)
    }
    await askUntil(seeker, () => new Set(seeker.doubted().map(({ peer }) => peer)).size === 2)
    expect([...seeker.believed]).toEqual([honest])
    await meet(seeker, await startLiar('127.0.6.1', honest), honest)
    expect(seeker.reachability.outsideHosts()).toEqual([honest])
  })

  test('is believed when another network sees the same', async () => {
    const seeker = await startSeeker()
    await meet(seeker, await startLiar('127.0.1.1', victim), victim)
    await askUntil(seeker, () => seeker.doubted().length > 0)
    await meet(seeker, await startLiar('127.0.2.1', victim), victim)
    await askUntil(seeker, () => seeker.believed.has(victim))
    expect(seeker.reachability.verdict()).toBe('mapped')
  })

  test('is believed when the router says so, by whichever port it forwards', async () => {
    const late: { port?: number | undefined } = {}
    const outside = { host: victim, port: 5000 }
    const seeker = await startSeeker(() =>
      late.port === undefined
        ? undefined
        : { protocol: 'pcp', router: '10.0.0.1', port: late.port, outside },
    )
    const claims = `/ip4/${victim}/tcp/5000/`
    await meet(seeker, await startLiar('127.0.1.1', claims), honest)
    late.port = portOf(seeker.raw.getMultiaddrs()[0] ?? multiaddr('/ip4/127.0.0.1'))
    await until(() => seeker.believed.has(victim))
    const [port] = await seeker.reachability.check(AbortSignal.timeout(30_000))
    expect(port).toMatchObject({ isReached: true, transport: 'tcp', port: late.port })
    expect(port?.address).toContain(claims)
  })

  test('cannot take a proof away while another network does not deny it', async () => {
    const seeker = await startSeeker()
    const truthful = await startLiar('127.0.2.1', honest)
    await meet(seeker, truthful, honest)
    await until(() => seeker.believed.has(honest))
    const liars = [await startLiar('127.0.1.1', undefined), await startLiar('127.0.1.2', undefined)]
    for (const liar of liars) await meet(seeker, liar, honest)
    await askUntil(seeker, () => liars.every((liar) => liar.answers() > 2))
    expect(seeker.lost).toEqual([])
    expect(seeker.reachability.verdict()).toBe('public')
  })

  test('can, when it is the only one', async () => {
    const seeker = await startSeeker()
    const fickle = await startLiar('127.0.1.1', honest)
    await meet(seeker, fickle, honest)
    await until(() => seeker.believed.has(honest))
    fickle.deny()
    await askUntil(seeker, () => seeker.lost.length > 0)
    expect(seeker.reachability.verdict()).toBe(undefined)
  })
})

/** Where the hostile peer claims to see the other: `observedAddr`, field 4 of libp2p's identify message. */
async function pushObserved(connection: Connection, text: string): Promise<void> {
  const { bytes } = multiaddr(text)
  const stream = await connection.newStream('/ipfs/id/push/1.0.0')
  await lpStream(stream).write(Uint8Array.from([0x22, bytes.length, ...bytes]))
  await stream.close()
}

test('a neighbour that claims ever new addresses makes nobody ask the others for more', async () => {
  const metrics = createMetrics()
  const witness = await startTcp(['/ip4/127.0.0.1/tcp/0'], { metrics })
  const honest = await startTcp(['/ip4/127.0.0.1/tcp/0'])
  await honest.connect(addressOf(witness))
  await until(() => honest.reachability() === 'public')
  const hostile = await startRaw([])
  const connection = await hostile.dial(multiaddr(addressOf(honest)))
  const asked = metrics.read('rpc_requests_total')
  for (let index = 0; index < 40; index++) {
    await pushObserved(connection, `/ip4/11.0.0.${index}/tcp/4010`)
  }
  await new Promise((resolve) => setTimeout(resolve, 300))
  expect(metrics.read('rpc_requests_total') - asked).toBeLessThan(5)
  expect(metrics.read('peer_offences_total')).toBe(0)
})

describe('a dial-back', () => {
  test('reaches a listener at the address that the caller is seen at', async () => {
    const called = await startTcp(['/ip4/127.0.0.1/tcp/0'])
    const caller = await startTcp(['/ip4/127.0.0.1/tcp/0'])
    await caller.connect(addressOf(called))
    await until(() => caller.reachability() === 'public')
    await until(() => called.links().length === 1)
  })

  test('never goes to another IP, another peer, or through a relay', async () => {
    const called = await startTcp(['/ip4/127.0.0.1/tcp/0'])
    const trap = await startTrap('127.0.0.2')
    const here = await startTrap('127.0.0.1')
    const stranger = (await createIdentity()).peerId
    const refused = [
      (self: string) => [`/ip4/127.0.0.2/tcp/${trap.port}/p2p/${self}`],
      (self: string) => [`/dns4/localhost/tcp/${here.port}/p2p/${self}`],
      () => [`/ip4/127.0.0.1/tcp/${here.port}/p2p/${stranger}`],
      () => [`/ip4/127.0.0.1/tcp/${here.port}`],
      (self: string) => [`/ip4/127.0.0.1/tcp/${here.port}/p2p/${stranger}/p2p-circuit/p2p/${self}`],
      () => ['/memory/x', 'not an address', ''],
    ]
    // Each caller once: more would be too often.
    for (const addressesOf of refused) {
      const caller = await startTcp([])
      await caller.connect(addressOf(called))
      const addresses = addressesOf(caller.peerId)
      await expect(ask(caller, called, addresses)).rejects.toMatchObject({ code: 'refused' })
    }
    expect(trap.visits() + here.visits()).toBe(0)
  })

  test('is made rarely for one peer, and says when nobody answers', async () => {
    const metrics = createMetrics()
    const called = await startTcp(['/ip4/127.0.0.1/tcp/0'], { metrics })
    const caller = await startTcp([])
    await caller.connect(addressOf(called))
    const trap = await startTrap('127.0.0.1')
    const addresses = [`/ip4/127.0.0.1/tcp/${trap.port}/p2p/${caller.peerId}`]
    for (const visits of [1, 2]) {
      await expect(ask(caller, called, addresses)).rejects.toMatchObject({
        code: 'peer_unreachable',
      })
      expect(trap.visits()).toBe(visits)
    }
    for (let time = 0; time < 100; time++) {
      await expect(ask(caller, called, addresses)).rejects.toMatchObject({ code: 'limit_exceeded' })
    }
    expect(trap.visits()).toBe(2)
    // A peer that believes what its neighbours say may ask too often without harm in mind.
    expect(metrics.read('peer_offences_total')).toBe(0)
  })

  test('is not made for a caller without an IP, or whom this node dialled itself', async () => {
    const [client, server] = await startPair()
    await expect(ask(client, server, client.addresses())).rejects.toMatchObject({ code: 'refused' })
    const metrics = createMetrics()
    const called = await startTcp([], { metrics })
    const caller = await startTcp(['/ip4/127.0.0.1/tcp/0'])
    await called.connect(addressOf(caller))
    await until(() => caller.connectedPeers().length === 1)
    const outside = `/ip4/11.0.0.7/tcp/4010/p2p/${caller.peerId}`
    const addresses = [...caller.addresses(), outside]
    await expect(ask(caller, called, addresses)).rejects.toMatchObject({ code: 'refused' })
    expect(metrics.read('peer_offences_total')).toBe(0)
  })

  test.each([
    [[]],
    [['/ip4/127.0.0.1/tcp/1'.repeat(20)]],
    [Array.from({ length: 17 }, () => 'x')],
    [7],
  ])('refuses the malformed request %j', async (addresses) => {
    const [client, server] = await startPair()
    await expect(ask(client, server, addresses)).rejects.toMatchObject({ code: 'message_invalid' })
  })
})
