import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ROUTES } from '../../../node/api/routes.ts'
import { natProbe } from '../../../node/net/nat-probe.ts'
import { nodeTransports } from '../../../node/net/transports.ts'
import { silentLogger } from '../../../src/log.ts'
import { createMetrics } from '../../../src/metrics.ts'
import { adviceOn } from '../../../src/net/advice.ts'
import { diagnose } from '../../../src/net/diagnosis.ts'
import type { Diagnosis } from '../../../src/net/diagnosis.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import { UNKNOWN_NAT } from '../../../src/net/nat.ts'
import type { PortForwarding } from '../../../src/net/nat.ts'
import type { Link, Network } from '../../../src/net/network.ts'
import { createOffences } from '../../../src/net/offences.ts'
import { createReachability } from '../../../src/net/reachability.ts'
import { createRpcService } from '../../../src/net/rpc.ts'
import { seededRandom } from '../../../src/random.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { createManualClock } from '../../manual-clock.ts'
import { startSilentPeer } from '../../silent-peer.ts'
import {
  startHidden,
  startReflector,
  startRelay,
  startTcpNetwork,
} from '../node/net/relay-network.ts'
import { addressOf, startMemoryNetwork, startPair, until } from './memory-network.ts'

function ask(network: Network, peer?: string): Promise<Diagnosis> {
  return network.diagnose({ peer, signal: AbortSignal.timeout(30_000) })
}

const EMPTY_LINK: Link = {
  peer: '',
  address: '/ip4/127.0.0.1/tcp/1',
  transport: 'tcp',
  direct: true,
  direction: 'inbound',
  rttMs: null,
  ageMs: 0,
  bytesSent: 0,
  bytesReceived: 0,
  sentBytesPerSecond: 0,
  receivedBytesPerSecond: 0,
  history: [],
}

function of(diagnosis: Diagnosis, subject: string): Diagnosis['advice'][number] | undefined {
  return diagnosis.advice.find((advice) => advice.subject === subject)
}

describe('a diagnosis', () => {
  test('looks at the NAT anew, however late it asks', async () => {
    const ports = await startReflector()
    const reflecting = await startRelay({}, { reflectorPorts: ports })
    const bootstrap = reflecting.addresses()
    const network = await startTcpNetwork({ bootstrap, natProbe: natProbe() })
    await until(() => network.nat().type !== 'unknown')
    const before = network.nat()
    const diagnosis = await ask(network)
    expect(diagnosis.nat).toMatchObject({ type: 'open', udp: { mapping: 'independent' } })
    expect(diagnosis.nat.udp?.outside.port).not.toBe(before.udp?.outside.port)
    expect((await ask(reflecting)).reflectorPorts).toEqual(ports)
  })

  test('tells of ports that neighbours reach, of the clock, and of bandwidth', async () => {
    const called = await startTcpNetwork()
    const caller = await startTcpNetwork()
    await caller.connect(addressOf(called))
    await until(() => caller.connectedPeers().length === 1 && caller.reachability() === 'public')
    const diagnosis = await ask(caller)
    const [port] = diagnosis.ports
    expect(diagnosis.ports).toHaveLength(1)
    expect(port).toMatchObject({ transport: 'tcp', isReached: true })
    expect(addressOf(caller)).toContain(`/tcp/${port?.port}/`)
    expect(diagnosis).toMatchObject({
      reachability: 'public',
      public: false,
      peers: { direct: 1, relayed: 0 },
      clock: { peers: 1 },
      bandwidth: { peer: called.peerId, direct: true, transport: 'tcp' },
      bandwidthFault: null,
    })
    // By as much as a busy machine may stand still; another kind of clock is years away.
    expect(Math.abs(diagnosis.clock?.aheadMs ?? 1e9)).toBeLessThan(60_000)
    expect(diagnosis.bandwidth?.uploadBytesPerSecond).toBeGreaterThan(1e4)
    expect(diagnosis.bandwidth?.downloadBytesPerSecond).toBeGreaterThan(1e4)
    expect(of(diagnosis, `port ${port?.port}/tcp`)).toMatchObject({ level: 'ok' })
    expect(of(diagnosis, 'clock')).toMatchObject({ level: 'ok' })
  })

  test('tells of relays, and measures through them where there is nothing else', async () => {
    const relay = await startRelay()
    const [a, b] = await startHidden([relay])
    await a.connect(b.peerId)
    await until(() => a.connectedPeers().length === 2)
    const diagnosis = await ask(a, b.peerId)
    expect(diagnosis).toMatchObject({
      relays: [relay.peerId],
      peers: { direct: 1, relayed: 1 },
      bandwidth: { peer: b.peerId, direct: false, transport: 'p2p-circuit' },
    })
    expect(of(diagnosis, 'relays')).toMatchObject({ level: 'hint', finding: '1 held' })
    expect(of(diagnosis, 'bandwidth')?.finding).toContain('by a relay')
  })

  test('of a node that knows nobody says what is wrong', async () => {
    const network = await startMemoryNetwork()
    const diagnosis = await ask(network)
    expect(diagnosis).toMatchObject({
      clock: null,
      bandwidth: null,
      bandwidthFault: 'no peer is connected',
    })
    expect(of(diagnosis, 'peers')).toMatchObject({ level: 'problem' })
    const stranger = (await createIdentity()).peerId
    expect((await ask(network, stranger)).bandwidthFault).toContain('not connected')
  })

  test('is helped with rarely, and by well-formed questions only', async () => {
    const [client, server] = await startPair()
    await until(() => client.connectedPeers().length === 1)
    const call = (request: unknown): Promise<Uint8Array> =>
      client.rpc.call(server.peerId, 'net/throughput', encodeCbor(request), { lane: 'bulk' })
    for (const request of [
      { bytes: 1 << 20, padding: new Uint8Array() },
      { bytes: -1, padding: new Uint8Array() },
      { bytes: 1 },
      7,
    ]) {
      await expect(call(request)).rejects.toMatchObject({ code: 'message_invalid' })
    }
    const faults: unknown[] = []
    for (let time = 0; time < 4; time++) faults.push((await ask(client)).bandwidthFault)
    expect(faults[0]).toBe(null)
    expect(faults.at(-1)).toContain('measured enough')
  })
})

test('a diagnosis beside a peer that never answers ends before the command gives it up', async () => {
  const clock = createManualClock()
  const [own, peer] = [await createIdentity(), await startSilentPeer()]
  onTestFinished(() => peer.stop())
  const libp2p = await createLibp2p({
    privateKey: own.privateKey,
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: nodeTransports(),
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => libp2p.stop())
  const [address = multiaddr('/memory/x')] = libp2p.getMultiaddrs()
  await peer.dial(address.toString())
  await until(() => libp2p.getConnections().length === 1)
  const base = { clock, logger: silentLogger, metrics: createMetrics(), random: seededRandom('x') }
  const offences = createOffences({ ...base, sendAway: () => {} })
  const rpc = await createRpcService({
    ...base,
    libp2p,
    offences,
    connectionTo: async (id, signal) => await libp2p.dial(peerIdFromString(id), { signal }),
  })
  onTestFinished(() => rpc.stop())
  const reachability = createReachability({
    ...base,
    libp2p,
    rpc,
    offences,
    listenAddresses: () => libp2p.getMultiaddrs(),
    onReached: () => {},
    onLost: () => {},
    onChange: () => {},
    isPunched: () => false,
    forwarding: () => undefined,
  })
  onTestFinished(() => reachability.stop())
  reachability.ask(peer.peerId, { seen: address, from: multiaddr('/ip4/127.0.0.1/tcp/1') })
  const link = { peer: peer.peerId, direct: true, transport: 'tcp', rttMs: 1 }
  const told: Diagnosis[] = []
  const startedMs = clock.now()
  void diagnose(
    {
      rpc,
      clock,
      isPublic: false,
      reflectorPorts: [],
      hasWebRtc: false,
      reachability: () => 'unknown',
      renewNat: async () => UNKNOWN_NAT,
      forwarding: () => undefined,
      relays: () => [],
      links: () => [{ ...EMPTY_LINK, ...link }],
      peers: () => [peer.peerId],
      checkPorts: (signal) => reachability.check(signal),
    },
    undefined,
    new AbortController().signal,
  ).then((diagnosis) => told.push(diagnosis))
  await until(() => peer.asked.includes('net/clock'))
  while (told.length === 0) await clock.advance(100)
  expect(clock.now() - startedMs).toBeLessThan(ROUTES.diagnose.deadlineMs)
  expect(told[0]).toMatchObject({ clock: null, bandwidth: null, ports: [{ isReached: null }] })
  expect(told[0]?.bandwidthFault).toContain('took longer than')
})

describe('advice', () => {
  const facts: Omit<Diagnosis, 'advice'> = {
    reachability: 'punchable',
    public: false,
    nat: {
      type: 'port-restricted-cone',
      udp: {
        outside: { host: '192.0.2.1', port: 7 },
        mapping: 'independent',
        filtering: 'address-and-port',
      },
      tcp: { outside: { host: '192.0.2.1', port: 8 }, mapping: 'independent' },
    },
    forwarding: null,
    ports: [{ transport: 'tcp', port: 4010, isReached: false, address: null }],
    reflectorPorts: [],
    webRtc: true,
    relays: ['a', 'b'],
    peers: { direct: 1, relayed: 1 },
    clock: { aheadMs: 20, peers: 1 },
    bandwidth: {
      peer: 'a',
      direct: true,
      transport: 'tcp',
      uploadBytesPerSecond: 1e7,
      downloadBytesPerSecond: 1e7,
    },
    bandwidthFault: null,
  }

  const forwarding: PortForwarding = {
    protocol: 'nat-pmp',
    router: '192.168.1.1',
    port: 4010,
    outside: { host: '11.0.0.1', port: 5000 },
  }

  test('on a port that the router forwards names the protocol and both ends', () => {
    const found = adviceOn({ ...facts, forwarding }).find(
      ({ subject }) => subject === 'port mapping',
    )
    expect(found?.finding).toBe('192.168.1.1 forwards port 4010 from 11.0.0.1:5000 by NAT-PMP')
    const reached = adviceOn({ ...facts, reachability: 'public' })
    expect(reached.map(({ subject }) => subject)).not.toContain('port mapping')
  })

  test('writes an IPv6 address so that its port can be told from it', () => {
    const outside = { host: '2a0f:1::10', port: 7 }
    const tcp = { outside, mapping: 'independent' } as const
    const udp = { ...tcp, filtering: 'address-and-port' } as const
    for (const { subject, finding } of adviceOn({ ...facts, nat: { type: 'open', udp, tcp } })) {
      if (subject === 'UDP' || subject === 'TCP') expect(finding).toContain('[2a0f:1::10]:7')
    }
  })

  test('is one sentence on each thing', () => {
    const advice = adviceOn(facts)
    const subjects = ['peers', 'reachability', 'NAT', 'UDP', 'TCP', 'port mapping', 'port 4010/tcp']
    const others = ['WebRTC', 'relays', 'clock', 'bandwidth']
    expect(advice.map(({ subject }) => subject)).toEqual([...subjects, ...others])
    for (const { advice: sentence } of advice) expect(sentence).toMatch(/^[A-Z].*\.$/)
  })

  test.each<[string, Partial<typeof facts>, string, string]>([
    ['a port that is not reached', {}, 'port 4010/tcp', 'hint'],
    ['the same of a public node', { public: true }, 'port 4010/tcp', 'problem'],
    ['a public node that nobody reaches', { public: true }, 'reachability', 'problem'],
    ['a public node that reflects nothing', { public: true }, 'STUN', 'problem'],
    ['one that does', { public: true, reflectorPorts: [3478] }, 'STUN', 'ok'],
    ['a router that forwards nothing', {}, 'port mapping', 'hint'],
    ['one that forwards', { forwarding }, 'port mapping', 'ok'],
    [
      'one that does not say from where',
      { forwarding: { ...forwarding, outside: null } },
      'port mapping',
      'ok',
    ],
    [
      'one behind another NAT',
      { forwarding: { ...forwarding, outside: { host: '100.64.0.7', port: 4010 } } },
      'port mapping',
      'hint',
    ],
    ['no relay', { relays: [] }, 'relays', 'problem'],
    ['no relay where none is needed', { relays: [], reachability: 'public' }, 'relays', 'ok'],
    ['a clock that is an hour off', { clock: { aheadMs: -3.6e6, peers: 3 } }, 'clock', 'hint'],
    [
      'a NAT that nobody has seen',
      { nat: { type: 'unknown', udp: undefined, tcp: undefined } },
      'UDP',
      'hint',
    ],
    ['UDP that does not get out', { nat: { ...facts.nat, udp: undefined } }, 'UDP', 'hint'],
    [
      'only web ports',
      { nat: { type: 'web-only', udp: undefined, tcp: undefined } },
      'TCP',
      'hint',
    ],
    ['WebRTC that is not there', { webRtc: false }, 'WebRTC', 'hint'],
    ['no bandwidth', { bandwidth: null, bandwidthFault: 'x' }, 'bandwidth', 'hint'],
  ])('on %s', (_what, changed, subject, level) => {
    const found = adviceOn({ ...facts, ...changed }).find((advice) => advice.subject === subject)
    expect(found?.level).toBe(level)
  })
})
