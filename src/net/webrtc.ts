/** One end of a WebRTC connection in the making, over the stack that is passed in: a browser's, or a package for Node. */
import { multiaddr } from '@multiformats/multiaddr'
import type { Logger } from '@libp2p/interface'
import { z } from 'zod'
import { abortReason, raceSignal } from '../clock.ts'
import type { Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { isIpHost } from './addresses.ts'
import type { Reflector } from './nat.ts'
import { WebRtcConnection } from './webrtc-connection.ts'
import type { WebRtcConnectionInit } from './webrtc-connection.ts'
import { readInterfaces, readSession, writeSession } from './webrtc-session.ts'
import type { WebRtcSession } from './webrtc-session.ts'

/** As a browser has it: `RTCPeerConnection`. */
export type PeerConnectionConstructor = new (configuration: RTCConfiguration) => RTCPeerConnection

/** Reflectors asked where packets come from; one of them may be gone. */
const REFLECTORS = 2
/** A stack gives a reflector that does not answer ten seconds. */
const GATHER_MS = 2_000
/** After the first answer of a reflector: for the other interfaces. */
const SETTLE_MS = 200
/** The same on both sides, so that neither need announce it. */
const CHANNEL = { negotiated: true, id: 0, ordered: true }

export interface WebRtcAttempt {
  /** This side's description; of the other side's one where there is one already. */
  describe(remote: WebRtcSession | undefined, signal: AbortSignal): Promise<WebRtcSession>
  /** IPs of this machine, when it has described itself. Undefined where a browser hides them. */
  interfaces(): string[] | undefined
  /** Takes the answer to what this side has offered. */
  accept(answer: WebRtcSession, signal: AbortSignal): Promise<void>
  /** Resolves when bytes can pass. Rejects with the signal's reason, or when ICE has found no way. */
  run(signal: AbortSignal): Promise<WebRtcConnection>
  /** Ends it, and the connection. */
  abort(thrown: unknown): void
}

export interface WebRtc {
  /** Takes the place of a peer's oldest when it has some. Throws `limit_exceeded` when there are too many of others. */
  begin(peer: string, direction: 'inbound' | 'outbound', log: Logger): WebRtcAttempt
}

export interface WebRtcOptions {
  PeerConnection: PeerConnectionConstructor
  reflectors: () => readonly Reflector[]
  clock: Clock
}

export function createWebRtc({ PeerConnection, reflectors, clock }: WebRtcOptions): WebRtc {
  /** In the order in which they were begun. */
  const open = new Map<WebRtcConnection, string>()
  return {
    begin(peer, direction, log) {
      const [oldest, ...others] = [...open].flatMap(([wire, owner]) =>
        owner === peer ? [wire] : [],
      )
      // What the peer asks for anew it has no other of: what seems open here may be dead.
      if (others.length + 1 >= LIMITS.webRtcConnectionsPerPeer) {
        oldest?.abort(new ShoalError('aborted', 'the peer has begun a newer one'))
      }
      if (open.size >= LIMITS.webRtcConnections) {
        throw new ShoalError('limit_exceeded', 'there are too many WebRTC connections')
      }
      const urls = reflectors().slice(0, REFLECTORS).flatMap(stunUrl)
      const peerConnection = new PeerConnection(urls.length > 0 ? { iceServers: [{ urls }] } : {})
      const wire = wireOver(peerConnection, peer, { clock, direction, log })
      open.set(wire, peer)
      wire.addEventListener('close', () => open.delete(wire))
      return attemptOf(wire, peerConnection, peer, clock)
    },
  }
}

function wireOver(
  peerConnection: RTCPeerConnection,
  peer: string,
  { log, ...init }: Pick<WebRtcConnectionInit, 'clock' | 'direction' | 'log'>,
): WebRtcConnection {
  try {
    const channel = peerConnection.createDataChannel('shoal', CHANNEL)
    const remoteAddr = multiaddr(`/webrtc/p2p/${peer}`)
    const scope = log.newScope('webrtc')
    return new WebRtcConnection({ ...init, peerConnection, channel, remoteAddr, log: scope })
  } catch (thrown) {
    peerConnection.close()
    throw asFault(thrown)
  }
}

function attemptOf(
  wire: WebRtcConnection,
  peerConnection: RTCPeerConnection,
  peer: string,
  clock: Clock,
): WebRtcAttempt {
  const take = async (remote: WebRtcSession, type: 'offer' | 'answer'): Promise<void> => {
    const sdp = writeSession(remote, type === 'offer' ? 'actpass' : 'active')
    await peerConnection.setRemoteDescription({ type, sdp })
  }
  const describe = async (remote: WebRtcSession | undefined): Promise<void> => {
    if (remote !== undefined) await take(remote, 'offer')
    const description =
      remote === undefined
        ? await peerConnection.createOffer()
        : await peerConnection.createAnswer()
    await peerConnection.setLocalDescription(description)
  }
  return {
    async describe(remote, signal) {
      const gathered = gather(peerConnection, clock, signal)
      gathered.catch(() => {})
      await raceSignal(describe(remote), signal)
      await gathered
      const own = readSession(peerConnection.localDescription?.sdp ?? '')
      if (own === undefined)
        throw new ShoalError('internal', 'the WebRTC stack says nothing usable')
      return own
    },
    interfaces: () => readInterfaces(peerConnection.localDescription?.sdp ?? ''),
    accept: (answer, signal) => raceSignal(take(answer, 'answer'), signal),
    async run(signal) {
      await wire.untilOpen(signal)
      const host = await raceSignal(remoteHost(peerConnection), signal)
      if (host !== undefined) wire.remoteAddr = multiaddr(`${host}/webrtc/p2p/${peer}`)
      return wire
    },
    abort: (thrown) => wire.abort(asFault(thrown)),
  }
}

function stunUrl({ host, ports: [port] }: Reflector): string[] {
  if (port === undefined) return []
  return [`stun:${host.includes(':') ? `[${host}]` : host}:${port}`]
}

/** Resolves when all candidates are known, or what is known will do. */
async function gather(
  peerConnection: RTCPeerConnection,
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  const done = new AbortController()
  const limit = AbortSignal.any([signal, done.signal])
  peerConnection.addEventListener('icegatheringstatechange', () => {
    if (peerConnection.iceGatheringState === 'complete') done.abort()
  })
  peerConnection.addEventListener('icecandidate', ({ candidate }) => {
    if (candidate?.candidate.includes(' typ srflx') !== true) return
    clock.sleep(SETTLE_MS, limit).then(
      () => done.abort(),
      () => {},
    )
  })
  await clock.sleep(GATHER_MS, limit).catch(() => {})
  if (signal.aborted) throw abortReason(signal)
}

const pairSchema = z.object({
  type: z.literal('candidate-pair'),
  state: z.literal('succeeded'),
  nominated: z.literal(true),
  remoteCandidateId: z.string(),
})
const endpointSchema = z.object({
  address: z.string().refine(isIpHost),
  port: z.int().min(1).max(65_535),
})

/** Where the packets come from, as a multiaddr. A browser does not say it of a machine on its LAN. */
async function remoteHost(peerConnection: RTCPeerConnection): Promise<string | undefined> {
  const stats = new Map<string, unknown>()
  const report = await peerConnection.getStats()
  report.forEach((value: unknown, id: string) => stats.set(id, value))
  for (const value of stats.values()) {
    const pair = pairSchema.safeParse(value)
    const remote = endpointSchema.safeParse(stats.get(pair.data?.remoteCandidateId ?? ''))
    if (!remote.success) continue
    const { address, port } = remote.data
    return `/ip${address.includes(':') ? 6 : 4}/${address}/udp/${port}`
  }
  return undefined
}
