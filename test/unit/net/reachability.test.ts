import { createServer } from 'node:net'
import { noise } from '@libp2p/noise'
import type { Connection, Libp2p } from '@libp2p/interface'
import { lpStream } from '@libp2p/utils'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { nodeTransports } from '../../../node/net/transports.ts'
import { systemClock } from '../../../src/clock.ts'
import { silentLogger } from '../../../src/log.ts'
import { createMetrics } from '../../../src/metrics.ts'
import { createNetwork } from '../../../src/net/host.ts'
import type { NetworkOptions } from '../../../src/net/host.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import type { Network, PeerRpc } from '../../../src/net/network.ts'
import { createOffences } from '../../../src/net/offences.ts'
import { createReachability } from '../../../src/net/reachability.ts'
import { seededRandom } from '../../../src/random.ts'
import { decodeCbor, encodeCbor } from '../../../src/store/content.ts'
import { addressOf, startMemoryNetwork, startPair, until } from './memory-network.ts'

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
  const strange = multiaddr('/ip4/11.0.0.7/tcp/4010')

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
    reachability.ask(neighbour, multiaddr('/ip4/127.0.0.1/tcp/1'))
    await reachability.check(signal)
    expect(reached).toEqual([])
    dialling = caller
    await reachability.check(signal)
    expect(reached).toHaveLength(1)
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
