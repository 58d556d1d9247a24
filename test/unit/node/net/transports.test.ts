import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { localNetworkDiscovery, nodeTransports } from '../../../../node/net/transports.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import { createNetwork } from '../../../../src/net/host.ts'
import type { NetworkOptions } from '../../../../src/net/host.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { Network } from '../../../../src/net/network.ts'
import { addressOf, createRecorder, until } from '../../net/memory-network.ts'

async function startTcp(options: Partial<NetworkOptions> = {}): Promise<Network> {
  const network = await createNetwork({
    identity: await createIdentity(),
    transports: nodeTransports(),
    listen: ['/ip4/127.0.0.1/tcp/0'],
    ...options,
  })
  onTestFinished(() => network.stop())
  return network
}

async function freeUdpPort(): Promise<number> {
  const socket = createSocket('udp4')
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve))
  const { port } = socket.address()
  await new Promise<void>((resolve) => socket.close(() => resolve()))
  return port
}

/** Multicast needs an interface that can: a machine without network has none. */
async function hasMulticast(): Promise<boolean> {
  const group = '224.0.0.251'
  const socket = createSocket({ type: 'udp4', reuseAddr: true })
  try {
    await new Promise<void>((resolve) => socket.bind(0, resolve))
    socket.addMembership(group)
    const heard = new Promise<boolean>((resolve) => {
      socket.once('message', () => resolve(true))
      setTimeout(() => resolve(false), 500)
    })
    await new Promise<void>((resolve, reject) =>
      socket.send('x', socket.address().port, group, (error) =>
        error ? reject(error) : resolve(),
      ),
    )
    return await heard
  } catch {
    return false
  } finally {
    socket.close()
  }
}

describe('TCP', () => {
  test('carries calls, shown as a direct tcp link', async () => {
    const server = await startTcp()
    server.rpc.handle('test/echo', async (request) => request)
    const client = await startTcp({ listen: [] })
    await client.connect(addressOf(server))
    expect(await client.rpc.call(server.peerId, 'test/echo', Uint8Array.of(1, 2))).toEqual(
      Uint8Array.of(1, 2),
    )
    const [link] = client.links()
    expect(link).toMatchObject({
      peer: server.peerId,
      transport: 'tcp',
      direct: true,
      direction: 'outbound',
    })
    expect(link?.address).toBe(addressOf(server))
    expect(link?.ageMs).toBeGreaterThanOrEqual(0)
  })

  test('counts all bytes of a connection, on both sides alike', async () => {
    const metrics = { client: createMetrics(), server: createMetrics() }
    const server = await startTcp({ metrics: metrics.server })
    server.rpc.handle('test/echo', async (request) => request)
    const client = await startTcp({ metrics: metrics.client, listen: [] })
    await client.connect(addressOf(server))
    await client.rpc.call(server.peerId, 'test/echo', new Uint8Array(1))
    const sent = (): number => metrics.client.read('network_bytes_sent_total')
    const received = (): number => metrics.server.read('network_bytes_received_total')
    // Handshake, identify and multistream are some kilobytes.
    expect(sent()).toBeGreaterThan(1000)
    const before = sent()
    const payload = 10 * (1 << 20)
    for (let call = 0; call < 10; call++) {
      await client.rpc.call(server.peerId, 'test/echo', new Uint8Array(1 << 20), { lane: 'bulk' })
    }
    const grown = sent() - before
    expect(grown).toBeGreaterThan(payload)
    expect(grown).toBeLessThan(payload * 1.1 + 10_000)
    // What left one side has arrived at the other, but for the last acknowledgements.
    await until(() => Math.abs(sent() - received()) < 1000)
    expect(metrics.client.read('network_bytes_received_total')).toBeGreaterThan(payload)
  })

  test('does not take another peer for the one that was meant', async () => {
    const server = await startTcp()
    const client = await startTcp({ listen: [] })
    const [address] = addressOf(server).split('/p2p/')
    const wrong = `${address}/p2p/${(await createIdentity()).peerId}`
    await expect(client.connect(wrong)).rejects.toMatchObject({ code: 'peer_unreachable' })
    expect(client.links()).toEqual([])
    expect(await client.connect(address ?? '')).toBe(server.peerId)
  })

  test('names a port that is taken', async () => {
    const squatter = createServer()
    await new Promise<void>((resolve) => squatter.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void squatter.close())
    const address = squatter.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const listen = [`/ip4/127.0.0.1/tcp/${port}`]
    await expect(startTcp({ listen })).rejects.toMatchObject({
      code: 'port_in_use',
      message: expect.stringContaining(String(port)),
    })
  })

  test('names an address that is not of this machine', async () => {
    await expect(startTcp({ listen: ['/ip4/192.0.2.1/tcp/0'] })).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining('192.0.2.1'),
    })
  })

  test('becomes reachable because the neighbour dials back', async () => {
    const { logger, events } = createRecorder()
    const server = await startTcp()
    const client = await startTcp({ logger, bootstrap: server.addresses() })
    await until(() => client.reachability() === 'public')
    expect(events).toContainEqual(expect.objectContaining({ event: 'network_reachable' }))
    // The connection made for that is closed again.
    await until(() => client.links().length === 1)
  })

  test('stays unproven without a listener', async () => {
    const server = await startTcp()
    const client = await startTcp({ listen: [], bootstrap: server.addresses() })
    await until(() => client.connectedPeers().length === 1)
    expect(client.reachability()).toBe('unknown')
    expect(client.addresses()).toEqual([])
  })
})

describe('discovery on the LAN', async () => {
  test.skipIf(!(await hasMulticast()))('connects two strangers', async () => {
    const port = await freeUdpPort()
    const nodes = [
      await startTcp({ peerDiscovery: localNetworkDiscovery(port) }),
      await startTcp({ peerDiscovery: localNetworkDiscovery(port) }),
    ]
    await until(() => nodes.every((node) => node.connectedPeers().length === 1))
  })

  test('is optional: a network starts where multicast fails', async () => {
    const { logger, events } = createRecorder()
    const network = await startTcp({
      logger,
      peerDiscovery: [
        (components) => {
          const [create] = localNetworkDiscovery()
          const source = create?.(components)
          if (source === undefined) throw new Error('no source')
          return Object.assign(source, {
            start: () => Promise.reject(new Error('multicast is forbidden here')),
          })
        },
      ],
    })
    expect(network.addresses()).toHaveLength(1)
    expect(events).toContainEqual(
      expect.objectContaining({ level: 'warn', event: 'peer_discovery_failed' }),
    )
  })
})
