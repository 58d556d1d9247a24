/** The WebRTC stack of this machine, and one that keeps what it has made. */
import { loadPeerConnection } from '../../../../node/net/transports.ts'
import type { PeerConnectionConstructor } from '../../../../src/net/webrtc.ts'

/** Undefined where there is none. */
export const PeerConnection = await loadPeerConnection()

if (PeerConnection === undefined) {
  console.warn('WebRTC tests are skipped: @roamhq/wrtc has no build for this machine')
}

export interface RecordedConnections {
  PeerConnection: PeerConnectionConstructor
  connections: RTCPeerConnection[]
}

export function recordConnections(): RecordedConnections {
  const connections: RTCPeerConnection[] = []
  if (PeerConnection === undefined) throw new Error('there is no WebRTC here')
  class Recorded extends PeerConnection {
    constructor(configuration: RTCConfiguration) {
      super(configuration)
      connections.push(this)
    }
  }
  return { PeerConnection: Recorded, connections }
}
