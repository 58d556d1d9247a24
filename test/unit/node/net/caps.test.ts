/** Caps on what a real node sends and receives, over TCP. */
import { noise } from '@libp2p/noise'
import { describe, expect, test } from 'vitest'
import { nodeEncrypters } from '../../../../node/net/tls.ts'
import type { NetworkOptions } from '../../../../src/net/host.ts'
import type { Network } from '../../../../src/net/network.ts'
import { addressOf } from '../../net/memory-network.ts'
import { startTcpNetwork } from './relay-network.ts'

const CHUNK_BYTES = 256 << 10
const CAP = 4_000_000

async function startSource(options: Partial<NetworkOptions>): Promise<Network> {
  const source = await startTcpNetwork(options)
  source.rpc.handle('test/chunk', async () => new Uint8Array(CHUNK_BYTES).fill(7))
  return source
}

/** Pulls until `endsMs`; returns the bytes that came. */
async function pull(sink: Network, source: Network, endsMs: number): Promise<number> {
  let bytes = 0
  const worker = async (): Promise<void> => {
    while (performance.now() < endsMs) {
      const options = { lane: 'bulk' } as const
      const chunk = await sink.rpc.call(source.peerId, 'test/chunk', new Uint8Array(), options)
      bytes += chunk.length
    }
  }
  await Promise.all(Array.from({ length: 4 }, worker))
  return bytes
}

/** Of a machine so busy that this process stands still, a cap lets no more be caught up than this. */
const CAUGHT_UP_MS = 100

/** Returns the function that ends it and tells for how long this process could work. */
function timeWork(): () => number {
  let workedMs = 0
  let tickedMs = performance.now()
  const tick = (): void => {
    const nowMs = performance.now()
    workedMs += Math.min(nowMs - tickedMs, CAUGHT_UP_MS)
    tickedMs = nowMs
  }
  const timer = setInterval(tick, 10)
  return () => {
    clearInterval(timer)
    tick()
    return workedMs
  }
}

async function expectCapped(sink: Network, source: Network): Promise<void> {
  const startedMs = performance.now()
  const endWork = timeWork()
  const bytes = await pull(sink, source, startedMs + 1500)
  const workedMs = endWork()
  // Beside what may be caught up, and what is on its way when the time is over.
  expect((bytes * 1000) / (performance.now() - startedMs)).toBeLessThan(1.15 * CAP)
  expect((bytes * 1000) / workedMs).toBeGreaterThan(0.6 * CAP)
}

describe.each([
  ['TLS', () => nodeEncrypters()],
  ['noise', () => [noise()]],
])('under %s', (_name, encrypters) => {
  test('a node sends no faster than it may', async () => {
    const connectionEncrypters = encrypters()
    const source = await startSource({ connectionEncrypters, uploadBytesPerSecond: CAP })
    const sink = await startTcpNetwork({ connectionEncrypters })
    await sink.connect(addressOf(source))
    await expectCapped(sink, source)
  })

  test('a node receives no faster than it may', async () => {
    const connectionEncrypters = encrypters()
    const source = await startSource({ connectionEncrypters })
    const sink = await startTcpNetwork({ connectionEncrypters, downloadBytesPerSecond: CAP })
    await sink.connect(addressOf(source))
    await expectCapped(sink, source)
  })
})

test('peers get equal shares of a cap, and a call is not starved by them', async () => {
  const source = await startSource({ uploadBytesPerSecond: CAP })
  source.rpc.handle('test/echo', async (request) => request)
  const sinks = [await startTcpNetwork(), await startTcpNetwork(), await startTcpNetwork()]
  for (const sink of sinks) await sink.connect(addressOf(source))
  const beganMs = performance.now()
  const endsMs = beganMs + 2500
  const endWork = timeWork()
  const pulls = sinks.slice(0, 2).map((sink) => pull(sink, source, endsMs))
  const [, , caller] = sinks
  let worstMs = 0
  while (performance.now() < endsMs) {
    const startedMs = performance.now()
    await caller?.rpc.call(source.peerId, 'test/echo', new Uint8Array(100))
    worstMs = Math.max(worstMs, performance.now() - startedMs)
  }
  const stalledMs = performance.now() - beganMs - endWork()
  const [first = 0, second = 0] = await Promise.all(pulls)
  expect(Math.min(first, second) / Math.max(first, second)).toBeGreaterThan(0.7)
  expect(worstMs - stalledMs).toBeLessThan(1000)
})
