/**
 * WebRTC between two peers that a relay has brought together: one question and one answer over the relayed link, then
 * ICE (RFC 8445) looks for a way. The last that is tried, and the only one that a browser knows.
 */
import type { Clock } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import { encodeCbor } from '../store/content.ts'
import { isGlobalHost } from './addresses.ts'
import type { Upgrade } from './libp2p-node.ts'
import type { NatWatch } from './nat.ts'
import type { PeerRpc } from './network.ts'
import { parsePath, webRtcReplySchema, webRtcSchema, WEBRTC_METHOD } from './punch-messages.ts'
import { mayPunch, shareLan } from './punch.ts'
import type { WebRtc, WebRtcAttempt } from './webrtc.ts'
import type { WebRtcSession } from './webrtc-session.ts'

export interface WebRtcContext {
  /** Undefined: this node has none. */
  webRtc: WebRtc | undefined
  rpc: PeerRpc
  nat: Pick<NatWatch, 'report'>
  upgrade: Upgrade
  /** IPs from which neighbours see this node. */
  outsideHosts: () => readonly string[]
  clock: Clock
  logger: Logger
  signal: AbortSignal
}

/** `theirHosts`: from where the peer is seen. Rejects when no way is found. */
export async function dialByWebRtc(
  peer: string,
  theirHosts: readonly string[],
  context: WebRtcContext,
): Promise<void> {
  const { webRtc, rpc, nat, clock, upgrade } = context
  if (webRtc === undefined) throw new ShoalError('internal', 'there is no WebRTC here')
  const signal = clock.deadline(DEADLINES.punchMs, 'WebRTC', context.signal)
  const attempt = webRtc.begin(peer, 'outbound', upgrade.log)
  try {
    const own = await attempt.describe(undefined, signal)
    const mapping = nat.report().udp?.mapping ?? null
    const request = encodeCbor({ session: own, mapping })
    const reply = await rpc.call(peer, WEBRTC_METHOD, request, { signal })
    const { session } = parsePath(webRtcReplySchema, reply)
    await attempt.accept(withFair(session, context.outsideHosts(), theirHosts))
    await upgrade.outbound(await attempt.run(signal), signal)
  } catch (thrown) {
    attempt.abort(thrown)
    throw thrown
  }
}

/** Returns the function that ends the service. `limited` throws for a peer that asks too often. */
export function serveWebRtc(context: WebRtcContext, limited: (peer: string) => void): () => void {
  const { rpc, logger } = context
  /** One per peer. */
  const pending = new Map<string, WebRtcAttempt>()
  return rpc.handle(WEBRTC_METHOD, async (request, { peer }) => {
    limited(peer)
    const { session, mapping } = parsePath(webRtcSchema, request)
    const { webRtc, nat, clock, upgrade } = context
    if (webRtc === undefined) throw new ShoalError('refused', 'this node has no WebRTC')
    const ownMapping = nat.report().udp?.mapping
    // NATs are of IPv4: by IPv6 there are firewalls, which let answers in.
    const hasIp6 = session.candidates.some(({ host }) => host.includes(':') && isGlobalHost(host))
    const isKnown = mapping !== null && ownMapping !== undefined
    if (isKnown && !hasIp6 && !mayPunch('udp', mapping, ownMapping)) {
      throw new ShoalError('refused', 'both NATs map each destination anew')
    }
    pending.get(peer)?.abort(new ShoalError('aborted', 'it has asked anew'))
    if (pending.size >= LIMITS.punches) {
      throw new ShoalError('limit_exceeded', 'too many paths are being made')
    }
    const signal = clock.deadline(DEADLINES.punchMs, 'WebRTC', context.signal)
    const attempt = webRtc.begin(peer, 'inbound', upgrade.log)
    pending.set(peer, attempt)
    const end = (): void => {
      if (pending.get(peer) === attempt) pending.delete(peer)
    }
    const fail = (thrown: unknown): void => {
      end()
      attempt.abort(thrown)
      logger.debug('webrtc_failed', { peer, message: messageOf(thrown) })
    }
    try {
      const own = await attempt.describe(withFair(session, context.outsideHosts(), []), signal)
      const upgraded = attempt.run(signal).then((wire) => upgrade.inbound(wire, signal))
      upgraded.then(end, fail)
      return encodeCbor({ session: own })
    } catch (thrown) {
      fail(thrown)
      throw asFault(thrown)
    }
  })
}

/**
 * Without the candidates that a peer has no business to have this node knock at: private addresses, unless both are on one
 * LAN or this node is seen in a private network itself, and its own machine, unless that is all there is.
 */
function withFair(
  session: WebRtcSession,
  ownHosts: readonly string[],
  theirHosts: readonly string[],
): WebRtcSession {
  const isPrivateFair =
    shareLan(theirHosts, ownHosts) || !ownHosts.some((host) => isGlobalHost(host))
  const isOwnFair = ownHosts.every(isLoopback)
  const candidates = session.candidates.filter(
    ({ host }) => isGlobalHost(host) || (isLoopback(host) ? isOwnFair : isPrivateFair),
  )
  return { ...session, candidates }
}

function isLoopback(host: string): boolean {
  return host.startsWith('127.') || host === '::1'
}
