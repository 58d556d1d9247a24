/** The same as network.test.ts, over TCP on the loopback interface with noise: what a real start looks like. */
import { describe, expect, onTestFinished, test } from 'vitest'
import { nodeTransports } from '../../node/net/transports.ts'
import { createBlobExchange } from '../../src/net/blobs.ts'
import { createMetrics } from '../../src/metrics.ts'
import { createNetwork } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import { cidOf } from '../../src/store/content.ts'
import { createMemoryBlobStore } from '../../src/store/memory.ts'
import { until } from '../unit/net/memory-network.ts'

async function startTcp(bootstrap: string[] = []): Promise<Network> {
  const network = await createNetwork({
    identity: await createIdentity(),
    transports: nodeTransports(),
    listen: ['/ip4/127.0.0.1/tcp/0'],
    bootstrap,
  })
  onTestFinished(() => network.stop())
  return network
}

describe('strangers on TCP', () => {
  test('find the provider of a blob and fetch it, within seconds of their start', async () => {
    const boot = await startTcp()
    const startedMs = performance.now()
    const nodes = await Promise.all([0, 1, 2].map(() => startTcp(boot.addresses())))
    const stores = nodes.map(() => createMemoryBlobStore())
    const exchanges = nodes.map(({ rpc }, index) =>
      createBlobExchange({ rpc, store: stores[index]!, metrics: createMetrics() }),
    )
    const bytes = new Uint8Array(1 << 20).map((_, index) => (index * 7) % 251)
    const cid = await cidOf(bytes, 'raw')
    await stores[0]!.put(cid, bytes)
    nodes[0]!.discovery.provide(cid)

    for (const index of [1, 2]) {
      const providers = new Set<string>()
      while (providers.size === 0) {
        for await (const peer of nodes[index]!.discovery.find(cid)) providers.add(peer)
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
      expect(providers).toContain(nodes[0]!.peerId)
      const fetched = await exchanges[index]!.fetch(cid, [...providers])
      expect(fetched.every((byte, at) => byte === bytes[at])).toBe(true)
    }
    expect(performance.now() - startedMs).toBeLessThan(8000)
    // Proven by dial-backs of the bootstrap node, so that all serve the DHT.
    await until(() => [boot, ...nodes].every((node) => node.reachability() === 'public'))
  })

  test('stop without leaving sockets', async () => {
    const sockets = (): number =>
      process.getActiveResourcesInfo().filter((kind) => kind.startsWith('TCP')).length
    const before = sockets()
    const boot = await startTcp()
    const node = await startTcp(boot.addresses())
    await until(() => boot.connectedPeers().length === 1)
    expect(sockets()).toBeGreaterThan(before)
    await node.stop()
    await boot.stop()
    await until(() => sockets() <= before)
    await expect(node.connect(boot.peerId)).rejects.toMatchObject({ code: 'peer_unreachable' })
  })
})
