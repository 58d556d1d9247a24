/**
 * WebRTC between two peers that a relay has brought together: one question and one answer over the relayed link, then
 * ICE (RFC 8445) looks for a way. The last that is tried, and the only one that a browser knows.
 */
import type { Clock } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import { encodeCbor } from '../store/content.ts'
import { isGlobalHost, isNear, rangeOf } from './addresses.ts'
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
    const ownHosts = context.outsideHosts()
    const isNearby = nearness(attempt.interfaces())
    // They claim to be where this node is: at most they have it knock at its own LAN.
    const isLan = (host: string): boolean => shareLan(theirHosts, ownHosts) && isNearby(host)
    await attempt.accept(withFair(session, ownHosts, isLan), signal)
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
      const own = await attempt.describe(
        withFair(session, context.outsideHosts(), () => false),
        signal,
      )
      const upgraded = attempt.run(signal).then((wire) => upgrade.inbound(wire, signal))
      upgraded.then(end, fail)
      return encodeCbor({ session: own })
    } catch (thrown) {
      fail(thrown)
      throw asFault(thrown)
    }
  })
}

/** Whether an IP may be on the LAN of one of these, if they are known. */
function nearness(interfaces: readonly string[] | undefined): (host: string) => boolean {
  return (host) => interfaces?.some((own) => isNear(own, host)) ?? true
}

/**
 * Without the candidates that a peer has no business to have this node knock at: private addresses, unless `isLan` says so
 * or this node is seen in a private network itself, and its own machine, unless that is where all see it from. While
 * nobody has said where this node is, the internet is all there is.
 */
function withFair(
  session: WebRtcSession,
  ownHosts: readonly string[],
  isLan: (host: string) => boolean,
): WebRtcSession {
  const own = new Set(ownHosts.map(rangeOf))
  const isPrivate = own.size > 0 && !own.has('global')
  const isMachine = own.size === 1 && own.has('loopback')
  const isFair = (host: string): boolean => {
    const range = rangeOf(host)
    if (range === 'private') return isPrivate || (own.size > 0 && isLan(host))
    return range === 'global' || (range === 'loopback' && isMachine)
  }
  return { ...session, candidates: session.candidates.filter(({ host }) => isFair(host)) }
}
