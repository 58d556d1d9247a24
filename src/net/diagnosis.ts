/** What `shoal doctor` tells: how this node is connected, found out anew where that is possible, with advice. */
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { adviceOn } from './advice.ts'
import type { Advice } from './advice.ts'
import type { NatReport, PortForwarding } from './nat.ts'
import type { Link, NetworkReachability, PeerRpc } from './network.ts'
import { measureClock, measureThroughput } from './peer-measurement.ts'
import type { Throughput } from './peer-measurement.ts'
import type { ListenCheck } from './reachability.ts'

/** Peers asked for the time: the median of some is right when one is wrong. */
const CLOCKS = 5
const CLOCK_MS = 5_000
/** Both directions, and what a slow line has under way when they are over. */
const THROUGHPUT_MS = 25_000

export interface Diagnosis {
  reachability: NetworkReachability
  /** Whether the operator says that others can dial this node. */
  public: boolean
  nat: NatReport
  /** What the router forwards to this node when it is asked to; null: nothing. */
  forwarding: PortForwarding | null
  /** Ports that this node listens on, and whether neighbours have reached them just now; null: none could try. */
  ports: ListenCheck[]
  /** Where this node tells others, by UDP and TCP, how they look from outside. */
  reflectorPorts: number[]
  /** Whether WebRTC connections can be made, the only ones of a browser. */
  webRtc: boolean
  /** Peer ids of the relays that lead here. */
  relays: string[]
  /** Peers connected directly, and through relays. */
  peers: { direct: number; relayed: number }
  /** By how much this machine's clock is ahead of those of peers; null: nobody told. */
  clock: { aheadMs: number; peers: number } | null
  /** To one peer, each direction by itself; null: nobody to measure with, or `why` it failed. */
  bandwidth: (Throughput & { peer: string; direct: boolean; transport: string }) | null
  bandwidthFault: string | null
  /** One sentence on each of these. */
  advice: Advice[]
}

export interface DiagnosisOptions {
  rpc: PeerRpc
  clock: Clock
  isPublic: boolean
  reflectorPorts: readonly number[]
  hasWebRtc: boolean
  reachability: () => NetworkReachability
  renewNat: () => Promise<NatReport>
  forwarding: () => PortForwarding | undefined
  relays: () => string[]
  links: () => Link[]
  /** Connected Shoal peers. */
  peers: () => string[]
  checkPorts: (signal: AbortSignal) => Promise<ListenCheck[]>
}

/** `peer`: to measure with; by default the one with the shortest direct way. Rejects only when the signal fires. */
export async function diagnose(
  options: DiagnosisOptions,
  peer: string | undefined,
  signal: AbortSignal,
): Promise<Diagnosis> {
  const [ports, clock, nat] = await Promise.all([
    options.checkPorts(signal),
    clockOf(options, signal),
    options.renewNat(),
  ])
  const measured = await bandwidthOf(options, peer, signal)
  signal.throwIfAborted()
  const links = options.links().filter((link) => options.peers().includes(link.peer))
  const direct = new Set(links.filter((link) => link.direct).map((link) => link.peer))
  const facts = {
    reachability: options.reachability(),
    public: options.isPublic,
    nat,
    forwarding: options.forwarding() ?? null,
    ports,
    reflectorPorts: [...options.reflectorPorts],
    webRtc: options.hasWebRtc,
    relays: options.relays(),
    peers: { direct: direct.size, relayed: options.peers().length - direct.size },
    clock,
    ...measured,
  }
  return { ...facts, advice: adviceOn(facts) }
}

async function clockOf(
  { rpc, peers, clock }: DiagnosisOptions,
  signal: AbortSignal,
): Promise<Diagnosis['clock']> {
  const limit = clock.deadline(CLOCK_MS, 'asking for the time', signal)
  const asked = peers().slice(0, CLOCKS)
  const answers = await Promise.allSettled(asked.map((peer) => measureClock(rpc, peer, limit)))
  const offsets = answers
    .flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []))
    .toSorted((a, b) => a - b)
  const median = offsets[Math.floor(offsets.length / 2)]
  return median === undefined ? null : { aheadMs: median, peers: offsets.length }
}

async function bandwidthOf(
  { rpc, links, peers, clock }: DiagnosisOptions,
  wanted: string | undefined,
  signal: AbortSignal,
): Promise<Pick<Diagnosis, 'bandwidth' | 'bandwidthFault'>> {
  const known = peers()
  const rank = ({ direct, rttMs }: Link): number => (direct ? 0 : 1e9) + (rttMs ?? 1e6)
  const [link] = links()
    .filter((candidate) => (wanted ?? candidate.peer) === candidate.peer)
    .filter((candidate) => known.includes(candidate.peer))
    .toSorted((a, b) => rank(a) - rank(b))
  if (link === undefined) {
    const why = wanted === undefined ? 'no peer is connected' : `${wanted} is not connected`
    return { bandwidth: null, bandwidthFault: why }
  }
  const { peer, direct, transport } = link
  try {
    const limit = clock.deadline(THROUGHPUT_MS, 'measuring', signal)
    const throughput = await measureThroughput(rpc, peer, clock, limit)
    return { bandwidth: { ...throughput, peer, direct, transport }, bandwidthFault: null }
  } catch (thrown) {
    return { bandwidth: null, bandwidthFault: messageOf(thrown) }
  }
}
