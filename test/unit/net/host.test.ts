import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import type { Clock } from '../../../src/clock.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import { createManualClock } from '../../manual-clock.ts'
import {
  addressOf,
  createRecorder,
  freshAddress,
  startMemoryNetwork,
  startPair,
  until,
} from './memory-network.ts'

async function addressWithPeer(): Promise<string> {
  return `${freshAddress()}/p2p/${(await createIdentity()).peerId}`
}

/** Retries of minutes pass in a second. */
const fast: Clock = {
  now: () => systemClock.now() * 50,
  sleep: (ms, signal) => systemClock.sleep(ms / 50, signal),
  deadline: (ms, cause, signal) => systemClock.deadline(ms, cause, signal),
}

describe('links', () => {
  test('are seen from both sides, with where they lead', async () => {
    const [client, server] = await startPair()
    await until(() => client.connectedPeers().length === 1 && server.connectedPeers().length === 1)
    await until(() => client.links()[0]?.rttMs !== null)
    expect(client.links()).toEqual([
      {
        peer: server.peerId,
        address: addressOf(server),
        transport: 'memory',
        direct: true,
        direction: 'outbound',
        rttMs: expect.any(Number),
        ageMs: expect.any(Number),
        bytesSent: expect.any(Number),
        bytesReceived: expect.any(Number),
        sentBytesPerSecond: expect.any(Number),
        receivedBytesPerSecond: expect.any(Number),
        history: [
          {
            transport: 'memory',
            direct: true,
            openedAgoMs: expect.any(Number),
            closedAgoMs: null,
          },
        ],
      },
    ])
    expect(server.links()).toMatchObject([{ peer: client.peerId, direction: 'inbound' }])
  })

  test('tell what passes over them, and how fast', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/sink', async () => new Uint8Array())
    const [before] = client.links()
    for (let time = 0; time < 5; time++) {
      await client.rpc.call(server.peerId, 'test/sink', new Uint8Array(1 << 20))
    }
    const [after] = client.links()
    const [other] = server.links()
    expect((after?.bytesSent ?? 0) - (before?.bytesSent ?? 0)).toBeGreaterThan(5 << 20)
    expect(other?.bytesReceived).toBeGreaterThan(5 << 20)
    // The 5 MiB within 5 seconds.
    expect(after?.sentBytesPerSecond).toBeGreaterThan(100_000)
    expect(other?.receivedBytesPerSecond).toBeGreaterThan(100_000)
    expect(other?.sentBytesPerSecond).toBeLessThan(50_000)
  })

  test('are told to listeners: those there already, those to come, those that go', async () => {
    const [client, server] = await startPair()
    await until(() => server.connectedPeers().length === 1)
    const seen: string[] = []
    const remove = server.onConnect((peer) => seen.push(`+${peer}`))
    server.onDisconnect((peer) => seen.push(`-${peer}`))
    server.onConnect(() => {
      throw new Error('a broken listener harms nobody')
    })
    expect(seen).toEqual([`+${client.peerId}`])
    const other = await startMemoryNetwork()
    await other.connect(addressOf(server))
    await until(() => seen.length === 2)
    expect(seen[1]).toBe(`+${other.peerId}`)
    remove()
    await client.stop()
    await until(() => seen.length === 3)
    expect(seen[2]).toBe(`-${client.peerId}`)
    const third = await startMemoryNetwork()
    await third.connect(addressOf(server))
    await until(() => server.connectedPeers().length === 2)
    expect(seen).toHaveLength(3)
  })
})

describe('connect', () => {
  test('takes an address, with and without a peer id, and the id of a known peer', async () => {
    const [client, server] = await startPair()
    expect(await client.connect(server.peerId)).toBe(server.peerId)
    const other = await startMemoryNetwork()
    const [, name] = addressOf(server).split('/memory/')
    expect(await other.connect(`/memory/${name?.split('/')[0]}`)).toBe(server.peerId)
  })

  test.each(['', 'localhost:4001', '/ip4/1.2.3/tcp/1', 'QmNoPeer', '/'])(
    'says that %j is no address',
    async (target) => {
      const network = await startMemoryNetwork()
      await expect(network.connect(target)).rejects.toMatchObject({ code: 'link_invalid' })
    },
  )

  test('says when nobody is there', async () => {
    const network = await startMemoryNetwork()
    await expect(network.connect(await addressWithPeer())).rejects.toMatchObject({
      code: 'peer_unreachable',
    })
    await expect(network.connect((await createIdentity()).peerId)).rejects.toMatchObject({
      code: 'peer_unreachable',
    })
  })

  test('ends when it is aborted', async () => {
    const network = await startMemoryNetwork()
    const reason = new Error('the user left')
    await expect(
      network.connect(await addressWithPeer(), AbortSignal.abort(reason)),
    ).rejects.toThrow()
  })
})

describe('a start', () => {
  test.each([
    ['bootstrap', { bootstrap: ['192.0.2.1:4001'] }],
    ['listen', { listen: ['/ip4/0.0.0.0/tcp'] }],
    ['announce', { announce: ['example.org'] }],
  ])('names a malformed %s address', async (_what, options) => {
    await expect(startMemoryNetwork(options)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(Object.values(options)[0]?.[0] ?? ''),
    })
  })

  test('names an address that is taken, or that no transport listens on', async () => {
    const listen = [freshAddress()]
    await startMemoryNetwork({ listen })
    await expect(startMemoryNetwork({ listen })).rejects.toMatchObject({ code: 'port_in_use' })
    await expect(startMemoryNetwork({ listen: ['/ip4/127.0.0.1/tcp/0'] })).rejects.toMatchObject({
      code: 'config_invalid',
    })
  })

  test('announces what it is told beside what it listens on', async () => {
    const network = await startMemoryNetwork({ announce: ['/dns4/example.org/tcp/4001'] })
    expect(network.addresses()).toHaveLength(2)
    expect(network.addresses()).toContain(`/dns4/example.org/tcp/4001/p2p/${network.peerId}`)
  })

  test('succeeds without the bootstrap node, says so once, and connects when it comes up', async () => {
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const bootstrap = [`${listen[0]}/p2p/${identity.peerId}`]
    const { logger, events } = createRecorder()
    const named = (name: string) => events.filter(({ event }) => event === name)
    const node = await startMemoryNetwork({ bootstrap, logger, clock: fast })
    await until(() => named('bootstrap_unreachable').length > 0)
    // Several attempts later it has said no more.
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect(named('bootstrap_unreachable')).toEqual([
      {
        level: 'warn',
        event: 'bootstrap_unreachable',
        fields: { address: bootstrap[0], message: expect.stringContaining('No memory listener') },
      },
    ])
    const boot = await startMemoryNetwork({ identity, listen })
    await until(() => node.connectedPeers().length === 1)
    await until(() => named('bootstrap_connected').length === 1)

    await boot.stop()
    await until(() => named('bootstrap_lost').length === 1)
    await startMemoryNetwork({ identity, listen })
    await until(() => node.connectedPeers().length === 1)
    await until(() => named('bootstrap_connected').length === 2)
    expect(named('bootstrap_unreachable').length).toBeLessThanOrEqual(2)
  })

  test('goes on looking for the bootstrap node though a neighbour is there', async () => {
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const bootstrap = [`${listen[0]}/p2p/${identity.peerId}`]
    const node = await startMemoryNetwork({ bootstrap, clock: fast })
    const neighbour = await startMemoryNetwork()
    await neighbour.connect(addressOf(node))
    await until(() => node.connectedPeers().length === 1)
    await startMemoryNetwork({ identity, listen })
    await until(() => node.connectedPeers().length === 2)
  })

  test('goes on looking for the other bootstrap nodes: two halves become one', async () => {
    const first = await startMemoryNetwork({ clock: fast })
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const bootstrap = [addressOf(first), `${listen[0]}/p2p/${identity.peerId}`]
    const node = await startMemoryNetwork({ bootstrap, clock: fast })
    await until(() => node.connectedPeers().length === 1)
    // Half a minute of the fast clock: it has given up neither hope nor the first.
    await new Promise((resolve) => setTimeout(resolve, 600))
    expect(node.connectedPeers()).toEqual([first.peerId])
    await startMemoryNetwork({ identity, listen })
    await until(() => node.connectedPeers().length === 2)
  })

  test('ignores its own address on the bootstrap list', async () => {
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const { logger, events } = createRecorder()
    const bootstrap = [`${listen[0]}/p2p/${identity.peerId}`]
    await startMemoryNetwork({ identity, listen, bootstrap, logger, clock: fast })
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(events.filter(({ event }) => event.startsWith('bootstrap'))).toEqual([])
  })
})

describe('a stop', () => {
  test('waits for nothing and is final, also while dialling', async () => {
    const rejections: unknown[] = []
    const onRejection = (reason: unknown): void => void rejections.push(reason)
    process.on('unhandledRejection', onRejection)
    onTestFinished(() => void process.off('unhandledRejection', onRejection))
    // On a clock that stands still nothing can be waited for.
    const clock = createManualClock()
    const [client, server] = await startPair({ clock })
    const busy = await startMemoryNetwork({
      clock,
      bootstrap: [addressOf(server), await addressWithPeer()],
    })
    await Promise.all([busy.stop(), client.stop(), server.stop()])
    expect(server.links()).toEqual([])
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(rejections).toEqual([])
  })
})
