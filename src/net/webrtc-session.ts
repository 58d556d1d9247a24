/**
 * What two peers must know of each other for WebRTC: ICE credentials, the fingerprint of a certificate, and where packets
 * may get through.
 *
 * Peers exchange these values, never SDP (RFC 8866): each side writes the session description of the other one itself, so
 * that the parser of a WebRTC stack, which is native code, reads no text of a stranger's.
 */
import { z } from 'zod'
import { LIMITS } from '../limits.ts'
import { isIpHost } from './addresses.ts'

const FINGERPRINT_BYTES = 32

const candidateSchema = z.strictObject({
  host: z.string().max(45).refine(isIpHost),
  port: z.int().min(1).max(65_535),
  priority: z.int().min(0).max(0x7fffffff),
})

/** Lengths and characters of RFC 8839 §5.4; stacks use 4 to 8 and 22 to 32 characters. */
export const sessionSchema = z.strictObject({
  usernameFragment: z.string().regex(/^[\w+/-]{4,64}$/),
  password: z.string().regex(/^[\w+/-]{22,128}$/),
  /** SHA-256 of the certificate. */
  fingerprint: z.instanceof(Uint8Array).refine(({ length }) => length === FINGERPRINT_BYTES),
  candidates: z.array(candidateSchema).max(LIMITS.iceCandidates),
})
export type WebRtcSession = z.infer<typeof sessionSchema>

/** What this side's stack says of itself. Undefined when it is not to be understood. */
export function readSession(sdp: string): WebRtcSession | undefined {
  const value = (name: string): string | undefined =>
    new RegExp(`^a=${name}:(.*?)\r?$`, 'm').exec(sdp)?.[1]
  const hash = /^sha-256 (.*)$/i.exec(value('fingerprint') ?? '')?.[1] ?? ''
  const lines = [...sdp.matchAll(/^a=candidate:(.*?)\r?$/gm)].map(([, line = '']) => line)
  const session = sessionSchema.safeParse({
    usernameFragment: value('ice-ufrag'),
    password: value('ice-pwd'),
    fingerprint: Uint8Array.from(hash.split(':'), (byte) => Number.parseInt(byte, 16)),
    candidates: lines.flatMap(readCandidate).slice(0, LIMITS.iceCandidates),
  })
  return session.data
}

/** IPs of this machine's interfaces, from the same text. Undefined where a browser hides them. */
export function readInterfaces(sdp: string): string[] | undefined {
  const hosts = [...sdp.matchAll(/^a=candidate:(?:\S+ ){4}(\S+) \d+ typ host\b/gm)]
  const names = hosts.map(([, name = '']) => name)
  return names.every(isIpHost) ? names : undefined
}

/** By UDP and with an IP: a browser hides that of a LAN behind a name, which is known there only. */
function readCandidate(line: string): z.infer<typeof candidateSchema>[] {
  const [, component, protocol, priority, host = '', port] = line.split(' ')
  if (component !== '1' || protocol?.toLowerCase() !== 'udp' || !isIpHost(host)) return []
  return [{ host, port: Number(port), priority: Number(priority) }]
}

/** As the session description that a stack takes for the other side's; `active`: of the side that answers. */
export function writeSession(
  { usernameFragment, password, fingerprint, candidates }: WebRtcSession,
  setup: 'actpass' | 'active',
): string {
  const hash = [...fingerprint].map((byte) => byte.toString(16).padStart(2, '0').toUpperCase())
  const lines = [
    'v=0',
    'o=- 0 0 IN IP4 0.0.0.0',
    's=-',
    't=0 0',
    'a=group:BUNDLE 0',
    'm=application 9 UDP/DTLS/SCTP webrtc-datachannel',
    'c=IN IP4 0.0.0.0',
    'a=mid:0',
    `a=ice-ufrag:${usernameFragment}`,
    `a=ice-pwd:${password}`,
    `a=fingerprint:sha-256 ${hash.join(':')}`,
    `a=setup:${setup}`,
    'a=sctp-port:5000',
    `a=max-message-size:${LIMITS.webRtcMessageBytes}`,
    ...candidates.map(
      ({ host, port, priority }, index) =>
        `a=candidate:${index + 1} 1 udp ${priority} ${host} ${port} typ host`,
    ),
    'a=end-of-candidates',
  ]
  return lines.map((line) => `${line}\r\n`).join('')
}
