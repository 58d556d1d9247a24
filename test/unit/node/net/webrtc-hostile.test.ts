/** What a peer gets that asks for WebRTC without need, for harm, or never answers. */
import { describe, expect, onTestFinished, test } from 'vitest'
import { abortReason, systemClock } from '../../../../src/clock.ts'
import type { Clock } from '../../../../src/clock.ts'
import { DEADLINES, LIMITS } from '../../../../src/limits.ts'
import { silentLogger } from '../../../../src/log.ts'
import { isNear, rangeOf } from '../../../../src/net/addresses.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { PeerRpc, RpcHandler } from '../../../../src/net/network.ts'
import { WEBRTC_METHOD } from '../../../../src/net/punch-messages.ts'
import { UNKNOWN_NAT } from '../../../../src/net/nat.ts'
import type { NatReport } from '../../../../src/net/nat.ts'
import { createWebRtc } from '../../../../src/net/webrtc.ts'
import type { WebRtcAttempt } from '../../../../src/net/webrtc.ts'
import { dialByWebRtc, serveWebRtc } from '../../../../src/net/webrtc-paths.ts'
import type { WebRtcContext } from '../../../../src/net/webrtc-paths.ts'
import { readInterfaces } from '../../../../src/net/webrtc-session.ts'
import type { WebRtcSession } from '../../../../src/net/webrtc-session.ts'
import { decodeCbor, encodeCbor } from '../../../../src/store/content.ts'
import { createManualClock, settle } from '../../../manual-clock.ts'
import { until } from '../../net/memory-network.ts'
import { PeerConnection, recordConnections } from './webrtc-stack.ts'
import type { RecordedConnections } from './webrtc-stack.ts'

const PEERS = await Promise.all(
  Array.from({ length: LIMITS.punches + 1 }, async () => (await createIdentity()).peerId),
)
const [PEER = ''] = PEERS

/** Of a peer that is nowhere: ICE finds no way to it. */
const SESSION: WebRtcSession = {
  usernameFragment: 'abcd',
  password: 'a'.repeat(22),
  fingerprint: new Uint8Array(32).fill(7),
  candidates: [],
}

const OF_THE_MACHINE = ['127.0.0.1', '::ffff:127.0.0.1', '0:0:0:0:0:0:0:1', '0.0.0.0']

function withCandidates(hosts: readonly string[]): WebRtcSession {
  return { ...SESSION, candidates: hosts.map((host) => ({ host, port: 9, priority: 1 })) }
}

/** Where the stack was told that the peer is. */
function toldTo({ connections }: RecordedConnections): Set<string | undefined> {
  const sdp = connections[0]?.remoteDescription?.sdp ?? ''
  const lines = [...sdp.matchAll(/^a=candidate:(.*)\r$/gm)]
  const hosts = lines.map(([, line]) => line?.split(' ')[4])
  // A stack writes some of them in its own way.
  return new Set(hosts.map((host) => (host === '::1' ? '0:0:0:0:0:0:0:1' : host)))
}

interface Side extends RecordedConnections {
  context: WebRtcContext
  /** As the peer does it over the relay. */
  ask(peer: string, request: unknown): Promise<Uint8Array>
}

interface SideOptions {
  clock?: Clock
  hosts?: string[]
  nat?: NatReport
  /** What the peer answers. */
  call?: PeerRpc['call']
}

function createSide({
  clock = systemClock,
  hosts = [],
  nat = UNKNOWN_NAT,
  call,
}: SideOptions): Side {
  const recorded = recordConnections()
  const stopping = new AbortController()
  const handlers = new Map<string, RpcHandler>()
  const never = async (): Promise<never> => await new Promise<never>(() => {})
  const context: WebRtcContext = {
    webRtc: createWebRtc({ PeerConnection: recorded.PeerConnection, reflectors: () => [], clock }),
    rpc: {
      handle: (method, handler) => {
        handlers.set(method, handler)
        return () => handlers.delete(method)
      },
      call: call ?? never,
    },
    nat: { report: () => nat },
    upgrade: { log: createLog(), outbound: never, inbound: never },
    outsideHosts: () => hosts,
    clock,
    logger: silentLogger,
    signal: stopping.signal,
  }
  const stopServing = serveWebRtc(context, () => {})
  onTestFinished(() => {
    stopping.abort()
    stopServing()
  })
  const { signal } = stopping
  return {
    ...recorded,
    context,
    ask: async (peer, request) =>
      (await handlers.get(WEBRTC_METHOD)?.(encodeCbor(request), { peer, signal })) ??
      new Uint8Array(),
  }
}

function createLog(): WebRtcContext['upgrade']['log'] {
  const silent = (): void => {}
  return Object.assign(silent, {
    error: silent,
    trace: silent,
    enabled: false,
    newScope: createLog,
  })
}

function openOf({ connections }: RecordedConnections): number {
  return connections.filter(({ connectionState }) => connectionState !== 'closed').length
}

describe.skipIf(PeerConnection === undefined)('a peer that asks for WebRTC', () => {
  test.each<[string, unknown]>([
    ['without a session', { mapping: null }],
    ['with SDP', { session: 'v=0\r\n', mapping: null }],
    [
      'with a flood of candidates',
      {
        session: {
          ...SESSION,
          candidates: Array.from({ length: 1000 }, () => ({
            host: '11.0.0.1',
            port: 1,
            priority: 1,
          })),
        },
        mapping: null,
      },
    ],
    [
      'with a message without end',
      { session: { ...SESSION, password: 'a'.repeat(1e5) }, mapping: null },
    ],
  ])('%s is refused before anything is opened', async (_what, request) => {
    const side = createSide({})
    await expect(side.ask(PEER, request)).rejects.toMatchObject({ code: 'message_invalid' })
    expect(side.connections).toEqual([])
  })

  test('where both NATs map each destination anew is refused', async () => {
    const outside = { host: '11.0.0.1', port: 1 }
    const udp = { outside, mapping: 'dependent', filtering: 'address-and-port' } as const
    const side = createSide({ nat: { type: 'symmetric', udp, tcp: undefined } })
    const request = { session: SESSION, mapping: 'dependent' }
    await expect(side.ask(PEER, request)).rejects.toMatchObject({ code: 'refused' })
    expect(side.connections).toEqual([])
  })

  test('again and again has one connection at a time, and all together a few', async () => {
    const side = createSide({})
    const request = { session: SESSION, mapping: null }
    for (let time = 0; time < 3; time++) await side.ask(PEER, request)
    expect(openOf(side)).toBe(1)
    for (const peer of PEERS.slice(1, LIMITS.punches)) await side.ask(peer, request)
    await expect(side.ask(PEERS.at(-1) ?? '', request)).rejects.toMatchObject({
      code: 'limit_exceeded',
    })
    expect(openOf(side)).toBe(LIMITS.punches)
  })

  test('and does not come is given up', async () => {
    const clock = createManualClock()
    const side = createSide({ clock })
    const reply = decodeCbor(await side.ask(PEER, { session: SESSION, mapping: null }), 1e4)
    expect(reply).toMatchObject({ session: { usernameFragment: expect.any(String) } })
    expect(openOf(side)).toBe(1)
    await clock.advance(DEADLINES.punchMs)
    expect(openOf(side)).toBe(0)
  })

  test('and comes again and again leaves room for others', () => {
    const recorded = recordConnections()
    const webRtc = createWebRtc({ ...recorded, reflectors: () => [], clock: systemClock })
    const attempts: WebRtcAttempt[] = []
    onTestFinished(() => attempts.forEach((attempt) => attempt.abort(new Error('over'))))
    const begin = (peer: string): number =>
      attempts.push(webRtc.begin(peer, 'inbound', createLog()))
    for (let time = 0; time < LIMITS.webRtcConnections; time++) begin(PEER)
    expect(openOf(recorded)).toBe(LIMITS.webRtcConnectionsPerPeer)
    expect(recorded.connections.at(-1)?.connectionState).not.toBe('closed')
    begin(PEERS[1] ?? '')
    expect(openOf(recorded)).toBe(LIMITS.webRtcConnectionsPerPeer + 1)
  })

  test.each<[string, string[], string[]]>([
    ['before anybody has said where this node is', [], ['12.0.0.1']],
    ['from the internet', ['11.0.0.1'], ['12.0.0.1']],
    ['from a private network', ['192.168.7.1'], ['12.0.0.1', '192.168.1.1']],
    ['on the same machine', ['127.0.0.1'], ['12.0.0.1', ...OF_THE_MACHINE, '192.168.1.1']],
  ])('%s has only what is its business knocked at', async (_what, hosts, knocked) => {
    const side = createSide({ hosts })
    const all = ['12.0.0.1', ...OF_THE_MACHINE, '192.168.1.1', '224.0.0.251']
    await side.ask(PEER, { session: withCandidates(all), mapping: null })
    expect(toldTo(side)).toEqual(new Set(knocked))
  })
})

describe.skipIf(PeerConnection === undefined)('a peer that is asked', () => {
  test('and never answers is given up, with a cause that says so', async () => {
    const clock = createManualClock()
    const asked = Promise.withResolvers<void>()
    const side = createSide({
      clock,
      call: async (_peer, _method, _request, { signal } = {}) => {
        asked.resolve()
        return await new Promise<never>((_resolve, reject) => {
          signal?.addEventListener('abort', () => reject(abortReason(signal)))
        })
      },
    })
    const outcome = dialByWebRtc(PEER, [], side.context)
    outcome.catch(() => {})
    await asked.promise
    expect(openOf(side)).toBe(1)
    await clock.advance(DEADLINES.punchMs)
    await expect(outcome).rejects.toMatchObject({ code: 'timeout', message: /WebRTC/ })
    expect(openOf(side)).toBe(0)
  })

  test.each<[string, unknown, string]>([
    ['nonsense', { session: 1 }, 'message_invalid'],
    ['more than it may', { session: { ...SESSION, password: 'a'.repeat(1e5) } }, 'message_invalid'],
  ])('and answers %s is given up', async (_what, reply, code) => {
    const side = createSide({ call: async () => encodeCbor(reply) })
    await expect(dialByWebRtc(PEER, [], side.context)).rejects.toMatchObject({ code })
    expect(openOf(side)).toBe(0)
  })

  test.each([
    ['claims to be on the same LAN', true],
    ['is elsewhere', false],
  ])('and %s has this node knock at no other network', async (_what, isClaimed) => {
    const told = Promise.withResolvers<string[]>()
    const side = createSide({
      hosts: ['11.0.0.1'],
      call: async () => {
        const interfaces = readInterfaces(side.connections[0]?.localDescription?.sdp ?? '') ?? []
        const near = interfaces.filter((host) => rangeOf(host) === 'private')
        const far = ['10.77.0.1', '172.29.0.1', '192.168.1.1', 'fd00::1'].filter(
          (host) => !interfaces.some((own) => isNear(own, host)),
        )
        told.resolve(near)
        return encodeCbor({ session: withCandidates(['12.0.0.1', ...near, ...far, '127.0.0.1']) })
      },
      clock: createManualClock(),
    })
    dialByWebRtc(PEER, [isClaimed ? '11.0.0.1' : '11.0.0.2'], side.context).catch(() => {})
    const near = await told.promise
    await until(() => side.connections[0]?.remoteDescription !== null)
    expect(toldTo(side)).toEqual(new Set(['12.0.0.1', ...(isClaimed ? near : [])]))
  })

  test('is given up by a stack that does not take the answer', async () => {
    const clock = createManualClock()
    const asked = Promise.withResolvers<void>()
    const side = createSide({
      clock,
      call: async () => {
        // As in a browser when the connection was closed meanwhile.
        for (const connection of side.connections) {
          connection.setRemoteDescription = async () => await new Promise<never>(() => {})
        }
        asked.resolve()
        return encodeCbor({ session: SESSION })
      },
    })
    const outcome = dialByWebRtc(PEER, [], side.context)
    outcome.catch(() => {})
    await asked.promise
    await clock.advance(DEADLINES.punchMs)
    await expect(outcome).rejects.toMatchObject({ code: 'timeout' })
    expect(openOf(side)).toBe(0)
  })

  test('is not, and nothing stays open, when the stack makes no channel', () => {
    const recorded = recordConnections()
    class Broken extends recorded.PeerConnection {
      override createDataChannel(): RTCDataChannel {
        throw new Error('no channel')
      }
    }
    const options = { PeerConnection: Broken, reflectors: () => [], clock: systemClock }
    expect(() => createWebRtc(options).begin(PEER, 'outbound', createLog())).toThrow('no channel')
    expect(recorded.connections).toHaveLength(1)
    expect(openOf(recorded)).toBe(0)
  })

  test('and answers without a way to it is given up', async () => {
    const clock = createManualClock()
    const side = createSide({ clock, call: async () => encodeCbor({ session: SESSION }) })
    const outcome = dialByWebRtc(PEER, [], side.context)
    outcome.catch(() => {})
    await until(() => side.connections[0]?.remoteDescription !== null)
    await settle()
    await clock.advance(DEADLINES.punchMs)
    await expect(outcome).rejects.toMatchObject({ code: 'timeout' })
    expect(openOf(side)).toBe(0)
  })
})
