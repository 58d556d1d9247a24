/** A network beside a raw libp2p node that writes to it what it likes. */
import { memory } from '@libp2p/memory'
import type { Libp2p, Stream } from '@libp2p/interface'
import { plaintext } from '@libp2p/plaintext'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { expect, onTestFinished } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import type { Clock } from '../../../src/clock.ts'
import { createMetrics } from '../../../src/metrics.ts'
import type { Metrics } from '../../../src/metrics.ts'
import { createFrameDecoder } from '../../../src/net/frame.ts'
import type { Frame } from '../../../src/net/frame.ts'
import type { Network } from '../../../src/net/network.ts'
import { RPC_PROTOCOLS } from '../../../src/net/rpc.ts'
import { addressOf, freshAddress, startMemoryNetwork } from './memory-network.ts'

export const STALL_MS = 150

async function startRaw(): Promise<Libp2p> {
  const raw = await createLibp2p({
    addresses: { listen: [freshAddress()] },
    transports: [memory()],
    connectionEncrypters: [plaintext()],
    streamMuxers: [
      yamux({ streamOptions: { initialStreamWindowSize: 1 << 20, maxStreamWindowSize: 4 << 20 } }),
    ],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => raw.stop())
  return raw
}

export interface Victim {
  network: Network
  metrics: Metrics
  raw: Libp2p
  open: (lane?: keyof typeof RPC_PROTOCOLS) => Promise<Stream>
  dropped: (reason: string) => number
}

/** A network, and a raw node connected to it. */
export async function startVictim(clock: Clock = systemClock): Promise<Victim> {
  const metrics = createMetrics()
  const network = await startMemoryNetwork({ metrics, stallMs: STALL_MS, clock })
  network.rpc.handle('test/echo', async (request) => request)
  const raw = await startRaw()
  const connection = await raw.dial(multiaddr(addressOf(network)))
  return {
    network,
    metrics,
    raw,
    open: (lane = 'control') => connection.newStream(RPC_PROTOCOLS[lane]),
    dropped: (reason) => metrics.read('rpc_streams_dropped_total', reason),
  }
}

/** Frames that come back. */
export function listen(stream: Stream): Frame[] {
  const frames: Frame[] = []
  const read = async (): Promise<void> => {
    for await (const batch of createFrameDecoder().decode(stream)) frames.push(...batch)
  }
  read().catch(() => {})
  return frames
}

export function frame(
  kind: Frame['kind'],
  id: number,
  method = '',
  payload: Uint8Array = new Uint8Array(),
): Frame {
  return { kind, id, method, payload }
}

/** The victim is well if it still answers an honest peer. */
export async function expectWell(network: Network): Promise<void> {
  const honest = await startMemoryNetwork()
  await honest.connect(addressOf(network))
  expect(await honest.rpc.call(network.peerId, 'test/echo', Uint8Array.of(9))).toEqual(
    Uint8Array.of(9),
  )
}
