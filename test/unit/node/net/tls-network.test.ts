import { expect, onTestFinished, test } from 'vitest'
import { nodeEncrypters } from '../../../../node/net/tls.ts'
import { nodeTransports } from '../../../../node/net/transports.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import type { Metrics } from '../../../../src/metrics.ts'
import { createNetwork } from '../../../../src/net/host.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { Network } from '../../../../src/net/network.ts'
import { addressOf, until } from '../../net/memory-network.ts'

async function startTls(metrics: Metrics, listen: readonly string[]): Promise<Network> {
  const network = await createNetwork({
    identity: await createIdentity(),
    transports: nodeTransports(),
    connectionEncrypters: nodeEncrypters(),
    listen,
    metrics,
  })
  onTestFinished(() => network.stop())
  return network
}

test('all bytes of a TLS connection are counted, on both sides alike', async () => {
  const metrics = { client: createMetrics(), server: createMetrics() }
  const server = await startTls(metrics.server, ['/ip4/127.0.0.1/tcp/0'])
  server.rpc.handle('test/echo', async (request) => request)
  const client = await startTls(metrics.client, [])
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
  expect(grown).toBeLessThan(payload * 1.01 + 10_000)
  // What left one side has arrived at the other, but for the last acknowledgements.
  await until(() => Math.abs(sent() - received()) < 1000)
  expect(metrics.client.read('network_bytes_received_total')).toBeGreaterThan(payload)
})
