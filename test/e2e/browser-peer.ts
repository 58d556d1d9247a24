/** A peer in a web page: the library as it is, WebSocket to a relay, and the browser's own WebRTC. */
import { webSockets } from '@libp2p/websockets'
import { createIdentity, createNetwork } from '../../src/index.ts'
import type { Network } from '../../src/index.ts'

const MIB = 1 << 20

async function start(bootstrap: string[]): Promise<Network> {
  return await createNetwork({
    identity: await createIdentity(),
    transports: [webSockets()],
    listen: [],
    bootstrap,
    PeerConnection: RTCPeerConnection,
  })
}

/** Hex of what the other side says about so many chunks, and of what was sent. */
async function exchange(network: Network, peer: string, chunks: number): Promise<boolean> {
  const results = await Promise.all(
    Array.from({ length: chunks }, async () => {
      const chunk = new Uint8Array(MIB)
      for (let at = 0; at < MIB; at += 65_536)
        crypto.getRandomValues(chunk.subarray(at, at + 65_536))
      const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', chunk))
      const said = await network.rpc.call(peer, 'test/hash', chunk, { lane: 'bulk' })
      return said.length === hash.length && said.every((byte, index) => byte === hash[index])
    }),
  )
  return results.every(Boolean)
}

/** What the test drives from outside. */
Object.assign(globalThis, { shoal: { start, exchange } })
