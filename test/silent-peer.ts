/** A peer that takes every question of the doctor, and answers none. */
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { nodeTransports } from '../node/net/transports.ts'
import { systemClock } from '../src/clock.ts'
import { silentLogger } from '../src/log.ts'
import { createMetrics } from '../src/metrics.ts'
import type { PeerRpc } from '../src/net/network.ts'
import { createOffences } from '../src/net/offences.ts'
import { createRpcService } from '../src/net/rpc.ts'

const QUESTIONS = ['net/clock', 'net/throughput', 'net/dial-back', 'net/reflector']

export interface SilentPeer {
  readonly peerId: string
  readonly rpc: PeerRpc
  /** Methods that it was asked for. */
  readonly asked: string[]
  dial(address: string): Promise<void>
  stop(): Promise<void>
}

export async function startSilentPeer(): Promise<SilentPeer> {
  const base = { clock: systemClock, logger: silentLogger, metrics: createMetrics() }
  const libp2p = await createLibp2p({
    transports: nodeTransports(),
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    services: { identify: identify() },
  })
  const rpc = await createRpcService({
    ...base,
    libp2p,
    offences: createOffences({ ...base, sendAway: () => {} }),
    connectionTo: (peer, signal) => libp2p.dial(peerIdFromString(peer), { signal }),
  })
  const asked: string[] = []
  for (const method of QUESTIONS) {
    rpc.handle(method, async () => {
      asked.push(method)
      return await new Promise<never>(() => {})
    })
  }
  return {
    peerId: libp2p.peerId.toString(),
    rpc,
    asked,
    async dial(address) {
      await libp2p.dial(multiaddr(address))
    },
    async stop() {
      await rpc.stop()
      await libp2p.stop()
    },
  }
}
