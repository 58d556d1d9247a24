/** WebRTC for Node: Google's libwebrtc, as the optional package `@roamhq/wrtc` brings it for most machines. */
import { messageOf } from '../../src/errors.ts'
import type { Logger } from '../../src/log.ts'
import type { PeerConnectionConstructor } from '../../src/net/webrtc.ts'

/** Undefined where the package is not: it is optional, and there is none for Alpine Linux, say. */
export async function loadPeerConnection(
  logger: Logger,
): Promise<PeerConnectionConstructor | undefined> {
  try {
    const { default: stack } = await import('@roamhq/wrtc')
    return stack.RTCPeerConnection
  } catch (thrown) {
    logger.info('webrtc_missing', {
      remedy: 'npm install @roamhq/wrtc',
      message: messageOf(thrown),
    })
    return undefined
  }
}
