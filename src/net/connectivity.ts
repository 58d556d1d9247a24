/**
 * How this node comes to be in touch with others, and stays so: whether it can be dialled, what NAT it is behind, relays
 * that lead to it, direct paths instead of relayed ones, and what it serves to others itself.
 */
import type { Connection, IdentifyResult, PeerId } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { messageOf } from '../errors.ts'
import { hostOf, isGlobal, isIp6, isUnaided } from './addresses.ts'
import { createDirectPaths } from './direct-paths.ts'
import type { DirectPaths } from './direct-paths.ts'
import type { NetworkBase } from './host.ts'
import type { Libp2pNode } from './libp2p-node.ts'
import { createNatWatch } from './nat.ts'
import type { NatProbe, NatReport, NatWatch, PortForwarding, Reflector } from './nat.ts'
import type { Discovery, NetworkReachability } from './network.ts'
import { createPathWatch } from './path-watch.ts'
import { dialDirectly } from './peer-dial.ts'
import type { PeerWatch } from './peer-watch.ts'
import { serveMeasurements } from './peer-measurement.ts'
import { pingConnection } from './ping.ts'
import type { Puncher } from './punch.ts'
import { createReachability } from './reachability.ts'
import type { ListenCheck, Reachability, ReachabilityOptions } from './reachability.ts'
import { createRelayServer } from './relay-server.ts'
import type { RelayLimits, RelayServer } from './relay-server.ts'
import { createRelays, relayCid } from './relays.ts'
import { servePunches } from './punch-answers.ts'
import type { Relays } from './relays.ts'
import type { RpcService } from './rpc.ts'
import { createWebRtc } from './webrtc.ts'
import type { PeerConnectionConstructor, WebRtc } from './webrtc.ts'

export interface ConnectivityOptions {
  /** Talks to nobody beyond the LAN: no address of the internet, no relay. */
  isLanOnly?: boolean | undefined
  /** The operator says that others can dial this node: it serves at once, and needs no proof. */
  isPublic?: boolean | undefined
  /** Carries connections for peers that cannot be dialled. */
  relay?: RelayLimits | undefined
  /** Ports on which this node tells others where their packets come from. */
  reflectorPorts?: readonly number[] | undefined
  /** Makes holes in NATs; needs sockets. */
  punchers?: readonly Puncher[] | undefined
  natProbe?: NatProbe | undefined
  /** Makes WebRTC connections: a browser's `RTCPeerConnection`, or that of a package for Node. */
  PeerConnection?: PeerConnectionConstructor | undefined
  /** What the router forwards to this node now, as it says itself. */
  forwarding?: (() => PortForwarding | undefined) | undefined
}

export interface Connectivity {
  /** Whether the operator says that others can dial this node. */
  readonly isPublic: boolean
  /** Where this node tells others how they look from outside. */
  readonly reflectorPorts: readonly number[]
  /** Whether WebRTC connections can be made. */
  readonly hasWebRtc: boolean
  reachability(): NetworkReachability
  nat(): NatReport
  forwarding(): PortForwarding | undefined
  /** As `nat`, looked at just now. */
  renewNat(): Promise<NatReport>
  /** Peer ids of the relays that lead to this node. */
  relays(): string[]
  relayServer(): RelayServer | undefined
  /** Has neighbours dial each port that is listened on. */
  checkPorts(signal: AbortSignal): Promise<ListenCheck[]>
  stop(): Promise<void>
}

interface Parts {
  libp2p: Libp2pNode
  rpc: RpcService
  peers: PeerWatch
  discovery: Discovery
  /** All addresses that this node listens on or announces. */
  base: NetworkBase
}

/** To be called before libp2p starts; `start` after it. */
export async function createConnectivity(
  parts: Parts,
  options: ConnectivityOptions,
): Promise<Connectivity & { start(): void }> {
  const { libp2p, rpc, peers, discovery, base } = parts
  const { isPublic = false, reflectorPorts = [] } = options
  const { forwarding = () => undefined } = options
  const ping = (connection: Connection, signal: AbortSignal): Promise<number> =>
    pingConnection(connection, base.clock, signal)
  const openedAt = (connection: Connection): number => peers.openedAt(connection)

  const late: { paths?: DirectPaths } = {}
  const isPunched = (connection: Connection): boolean => late.paths?.isPunched(connection) ?? false
  const hooks = reachabilityHooks(libp2p, base)
  const reachability = createReachability({
    ...base,
    ...hooks,
    libp2p,
    rpc,
    isPunched,
    forwarding,
  })
  const { nat, webRtc, punchers } = createNatParts(parts, options)
  const outsideHosts = (): string[] => reachability.outsideHosts()
  const paths = createDirectPaths({
    ...base,
    self: libp2p.peerId.toString(),
    libp2p,
    rpc,
    nat,
    punchers,
    webRtc,
    openedAt,
    outsideHosts,
    answer: servePunches,
    upgrade: libp2p.services.upgrade,
    peers: () => peers.connected(),
    addresses: () => libp2p.getMultiaddrs(),
  })
  late.paths = paths
  const pathWatch = createPathWatch({ ...base, libp2p, rpc, ping, openedAt })
  const relayServer = options.relay && (await serveAsRelay(options.relay, parts))
  followConnections(parts, { reachability, nat, paths, isPunched })

  let relays: Relays | undefined
  const stopMeasuring = serveMeasurements(rpc, base.clock)
  return {
    isPublic,
    reflectorPorts,
    hasWebRtc: webRtc !== undefined,
    start() {
      const { circuits } = libp2p.services
      const isServed = (): boolean => isPublic || reachability.isPublicByIp4()
      relays = createRelays({ ...base, libp2p, circuits, discovery, ping, isPublic: isServed })
      if (isPublic) announceAll(libp2p, hooks)
    },
    reachability: () => (isPublic ? 'public' : (reachability.verdict() ?? outlook(nat.report()))),
    nat: () => nat.report(),
    forwarding,
    renewNat: () => nat.renew(),
    relays: () => relays?.held() ?? [],
    relayServer: () => relayServer,
    checkPorts: (signal) => reachability.check(signal),
    async stop() {
      stopMeasuring()
      for (const part of [relays, paths, pathWatch, nat, reachability, relayServer]) {
        await Promise.resolve(part?.stop())
      }
    },
  }
}

interface NatParts {
  nat: NatWatch
  webRtc: WebRtc | undefined
  punchers: readonly Puncher[]
}

/** What looks at this node from outside, and WebRTC, which does so by itself with the same reflectors. */
function createNatParts({ rpc, base }: Parts, options: ConnectivityOptions): NatParts {
  const { natProbe: probe, reflectorPorts: ports = [], isLanOnly = false } = options
  // Paths are for peers behind a relay, which a LAN does without: who asks all the same wants packets sent elsewhere.
  const PeerConnection = isLanOnly ? undefined : options.PeerConnection
  const punchers = isLanOnly ? [] : (options.punchers ?? [])
  const needsReflectors = probe !== undefined || PeerConnection !== undefined
  const nat = createNatWatch({ ...base, rpc, probe, needsReflectors, ports })
  const reflectors = (): Reflector[] => nat.reflectors()
  const webRtc = PeerConnection && createWebRtc({ ...base, PeerConnection, reflectors })
  return { nat, webRtc, punchers }
}

/** What can be hoped for while nobody has dialled this node. */
function outlook({ type, udp, tcp }: NatReport): NetworkReachability {
  if (type === 'unknown') return 'unknown'
  return udp !== undefined || tcp?.mapping === 'independent' ? 'punchable' : 'relay-only'
}

type Hooks = Pick<ReachabilityOptions, 'listenAddresses' | 'onReached' | 'onLost' | 'onChange'>

function reachabilityHooks(
  { services: { dht, addresses } }: Libp2pNode,
  { logger }: NetworkBase,
): Hooks {
  return {
    listenAddresses: () => addresses.all().filter((address) => isUnaided(address)),
    onReached: (address) => addresses.confirm(address),
    onLost: (address) => addresses.withdraw(address),
    onChange: (isPublic) => {
      dht.setMode(isPublic ? 'server' : 'client').catch((thrown: unknown) => {
        logger.error('dht_mode_failed', { message: messageOf(thrown) })
      })
    },
  }
}

/** Who says that his node is public need not wait for a neighbour to find out: the first node has none. */
function announceAll(libp2p: Libp2pNode, { listenAddresses, onReached, onChange }: Hooks): void {
  for (const address of listenAddresses()) if (isGlobal(address)) onReached(address)
  onChange(true)
}

async function serveAsRelay(
  limits: RelayLimits,
  { libp2p, discovery, base }: Parts,
): Promise<RelayServer> {
  const addresses = (): Multiaddr[] => {
    const direct = libp2p.getMultiaddrs().filter((address) => isUnaided(address))
    const reachable = direct.filter((address) => hostOf(address) === undefined || isGlobal(address))
    return reachable.length > 0 ? reachable : direct
  }
  // Strangers have their relay dial: nothing of its own network.
  const isOutside = (address: Multiaddr): boolean =>
    isGlobal(address) || !addresses().some((own) => isGlobal(own))
  const reach = (peer: PeerId, signal: AbortSignal): Promise<Connection> =>
    dialDirectly(libp2p, peer, isOutside, signal)
  const server = await createRelayServer({ ...base, libp2p, limits, addresses, reach })
  discovery.provide(await relayCid())
  return server
}

/** Between two reactions to another network: a neighbour may claim each second that this node is elsewhere. */
const CHANGE_PAUSE_MS = 15_000

interface Followers {
  reachability: Reachability
  nat: NatWatch
  paths: DirectPaths
  isPunched: (connection: Connection) => boolean
}

function followConnections(
  { libp2p, rpc, base }: Parts,
  { reachability, nat, paths, isPunched }: Followers,
): void {
  let hosts = ''
  const onNetworkChange = withPauses(base, () => {
    // Nothing that was found out before need be true.
    nat.refresh()
    reachability.recheck()
    paths.retry()
  })
  libp2p.addEventListener('peer:identify', ({ detail }: CustomEvent<IdentifyResult>) => {
    const { connection, observedAddr, listenAddrs } = detail
    const { remoteAddr: from } = connection
    if (!isUnaided(from) || isPunched(connection)) return
    const peer = detail.peerId.toString()
    reachability.ask(peer, observedAddr && { seen: observedAddr, from })
    nat.meet(peer, reflectorHosts(from, listenAddrs))
    const seenAt = reachability.seenAt().toSorted().join(' ')
    if (hosts !== '' && seenAt !== hosts) onNetworkChange()
    hosts = seenAt
  })
  libp2p.addEventListener('connection:open', ({ detail }: CustomEvent<Connection>) => {
    rpc.migrate(detail)
  })
}

/** Where the neighbour is, and where it says that it can be reached by the other of IPv4 and IPv6. */
function reflectorHosts(from: Multiaddr, listenAddrs: readonly Multiaddr[]): string[] {
  const other = listenAddrs.find(
    (address) => isGlobal(address) && isGlobal(from) && isIp6(address) !== isIp6(from),
  )
  const hosts = [other, from].map((address) => address && hostOf(address))
  return hosts.filter((host) => host !== undefined)
}

/** Acts at once, then once more when the pause is over if it was to act meanwhile. */
function withPauses({ clock, stopping }: NetworkBase, act: () => void): () => void {
  let isPausing = false
  let isDue = false
  const perform = (): void => {
    isDue = isPausing
    if (isPausing) return
    isPausing = true
    act()
    const goOn = (): void => {
      isPausing = false
      if (isDue) perform()
    }
    clock.sleep(CHANGE_PAUSE_MS, stopping).then(goOn, () => {})
  }
  return perform
}
