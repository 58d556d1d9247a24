import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  readInterfaces,
  readSession,
  sessionSchema,
  writeSession,
} from '../../../src/net/webrtc-session.ts'
import type { WebRtcSession } from '../../../src/net/webrtc-session.ts'

const FINGERPRINT = Uint8Array.from({ length: 32 }, (_, index) => index * 7)

/** As libwebrtc writes it, shortened, and with what is no use here: TCP, RTCP, and names that hide a host. */
const SDP = [
  'v=0',
  'o=- 8292074920332544799 2 IN IP4 127.0.0.1',
  's=-',
  't=0 0',
  'a=group:BUNDLE 0',
  'm=application 34028 UDP/DTLS/SCTP webrtc-datachannel',
  'c=IN IP4 192.0.2.2',
  'a=candidate:3077952869 1 udp 2122265343 2001:db8::2 39673 typ host generation 0 network-id 2',
  'a=candidate:3229573512 1 UDP 1686052607 11.0.0.1 34028 typ srflx raddr 192.0.2.2 rport 34028',
  'a=candidate:344579997 1 tcp 1518083839 192.0.2.2 38589 typ host tcptype passive generation 0',
  'a=candidate:1 2 udp 2122265342 192.0.2.2 34029 typ host generation 0',
  'a=candidate:2 1 udp 2122265342 5f3a7cf2-1111-2222-3333-444455556666.local 34029 typ host',
  'a=ice-ufrag:M+oB',
  'a=ice-pwd:t768VeDsbdr6h1xc16WN/eY2',
  'a=ice-options:trickle',
  `a=fingerprint:sha-256 ${Buffer.from(FINGERPRINT)
    .toString('hex')
    .toUpperCase()
    .replaceAll(/(..)(?=.)/g, '$1:')}`,
  'a=setup:actpass',
  'a=mid:0',
  'a=sctp-port:5000',
  '',
].join('\r\n')

const SESSION: WebRtcSession = {
  usernameFragment: 'M+oB',
  password: 't768VeDsbdr6h1xc16WN/eY2',
  fingerprint: FINGERPRINT,
  candidates: [
    { host: '2001:db8::2', port: 39673, priority: 2122265343 },
    { host: '11.0.0.1', port: 34028, priority: 1686052607 },
  ],
}

describe('a session', () => {
  test('is read from what a stack says: UDP only, with IPs', () => {
    expect(readSession(SDP)).toEqual(SESSION)
  })

  test('says where this machine is, unless a browser hides that', () => {
    expect(readInterfaces(SDP)).toBeUndefined()
    const shown = SDP.replace(/^a=candidate.*\.local .*\r\n/m, '')
    expect(readInterfaces(shown)).toEqual(['2001:db8::2', '192.0.2.2', '192.0.2.2'])
    expect(readInterfaces('')).toEqual([])
  })

  test('is the same after it was written for the other side', () => {
    for (const setup of ['actpass', 'active'] as const) {
      const text = writeSession(SESSION, setup)
      expect(readSession(text)).toEqual(SESSION)
      expect(text).toContain(`a=setup:${setup}\r\n`)
    }
  })

  test('has no more candidates than are allowed, however many there are', () => {
    const [line = ''] = SDP.match(/^a=candidate.*\r\n/m) ?? []
    const session = readSession(SDP.replace(line, line.repeat(40)))
    expect(session?.candidates).toHaveLength(LIMITS.iceCandidates)
  })

  test.each(['ice-ufrag', 'ice-pwd', 'fingerprint'])('is none without %s', (name) => {
    expect(readSession(SDP.replace(`a=${name}:`, 'a=other:'))).toBeUndefined()
  })

  test('is none for any text that is no description', () => {
    fc.assert(fc.property(fc.string(), (text) => readSession(text) === undefined))
  })
})

describe('what a peer sends', () => {
  const [candidate = { host: '', port: 1, priority: 1 }] = SESSION.candidates

  test('can hold no line of its own', () => {
    const line = 'a=candidate:1 1 udp 1 192.168.1.1 80 typ host'
    const insert = fc
      .tuple(fc.string(), fc.constantFrom('\r\n', '\n', '\r', ' '))
      .map((parts) => parts.join(''))
    fc.assert(
      fc.property(insert, (text) => {
        for (const key of ['usernameFragment', 'password'] as const) {
          const value = `${SESSION[key]}${text}${line}`
          expect(sessionSchema.safeParse({ ...SESSION, [key]: value }).success).toBe(false)
        }
        const candidates = [{ ...candidate, host: `11.0.0.1${text}` }]
        expect(sessionSchema.safeParse({ ...SESSION, candidates }).success).toBe(false)
      }),
    )
  })

  test.each<[string, Record<string, unknown>]>([
    ['a long fragment', { usernameFragment: 'a'.repeat(65) }],
    ['a short password', { password: 'a'.repeat(21) }],
    ['a long password', { password: 'a'.repeat(129) }],
    ['another kind of fingerprint', { fingerprint: new Uint8Array(20) }],
    ['a flood of candidates', { candidates: Array(LIMITS.iceCandidates + 1).fill(candidate) }],
    ['a candidate by name', { candidates: [{ ...candidate, host: 'localhost' }] }],
    ['a port that is none', { candidates: [{ ...candidate, port: 65_536 }] }],
    ['a priority that is none', { candidates: [{ ...candidate, priority: -1 }] }],
    ['what nobody has asked for', { sdp: 'v=0' }],
  ])('is refused with %s', (_what, changes) => {
    expect(sessionSchema.safeParse(SESSION).success).toBe(true)
    expect(sessionSchema.safeParse({ ...SESSION, ...changes }).success).toBe(false)
  })
})
