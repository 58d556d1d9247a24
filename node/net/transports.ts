/** What needs sockets: TCP, WebSocket and WebRTC for the network, holes in NATs, multicast for neighbours on the LAN. */
import { mdns } from '@libp2p/mdns'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { messageOf } from '../../src/errors.ts'
import { silentLogger } from '../../src/log.ts'
import type { Logger } from '../../src/log.ts'
import type { PeerDiscoveryFactories, TransportFactories } from '../../src/net/libp2p-node.ts'
import type { Puncher } from '../../src/net/punch.ts'
import type { PeerConnectionConstructor } from '../../src/net/webrtc.ts'
import { tcpPuncher } from './tcp-punch.ts'
import { udpPuncher } from './udp-punch.ts'

/** TCP and WebSocket. */
export function nodeTransports(): TransportFactories {
  // On both sides, or replies of some hundred bytes wait 40 ms for Nagle's algorithm.
  return [tcp({ dialOpts: { noDelay: true }, listenOpts: { noDelay: true } }), webSockets()]
}

/** TCP first: half of UDP's work for the processor. */
export function nodePunchers(): Puncher[] {
  return [tcpPuncher(), udpPuncher()]
}

/**
 * Google's libwebrtc, as the optional package `@roamhq/wrtc` brings it for most machines. Undefined where it is not: there
 * is none for Alpine Linux, say.
 */
export async function loadPeerConnection(
  logger: Logger = silentLogger,
): Promise<PeerConnectionConstructor | undefined> {
  try {
    const { default: stack } = await import('@roamhq/wrtc')
    return stack.RTCPeerConnection
  } catch (thrown) {
    logger.info('webrtc_missing', {
      remedy: 'npm install @roamhq/wrtc, if it has a build for this machine',
      message: messageOf(thrown),
    })
    return undefined
  }
}

/**
 * Finds, and is found by, nodes on the same LAN. A network starts without it where multicast is not possible. `port`:
 * for tests, which must not meet other nodes of the machine.
 */
export function localNetworkDiscovery(port = 5353): PeerDiscoveryFactories {
  // Not libp2p's own tag: every libp2p program on the LAN answers to that.
  return [mdns({ serviceTag: '_shoal._udp.local', interval: 10_000, port })]
}
