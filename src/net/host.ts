/** createNetwork(): a libp2p node with Shoal's protocols, behind the `Network` port. */
import type { Connection, PeerId, PeerInfo } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import { raceSignal, systemClock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { silentLogger } from '../log.ts'
import type { Logger } from '../log.ts'
import { createMetrics } from '../metrics.ts'
import type { Metrics } from '../metrics.ts'
import { seededRandom } from '../random.ts'
import type { Random } from '../random.ts'
import { createMemoryRecordStore } from '../store/memory.ts'
import type { RecordStore } from '../store/record-store.ts'
import { isDirect, parseAddress, transportOf } from './addresses.ts'
import { createDialler } from './dialler.ts'
import { createDiscovery } from './discovery.ts'
import type { Identity } from './identity.ts'
import { createLibp2pNode, startLibp2pNode } from './libp2p-node.ts'
import type {
  EncrypterFactories,
  Libp2pNode,
  PeerDiscoveryFactories,
  TransportFactories,
} from './libp2p-node.ts'
import type { Link, Network } from './network.ts'
import { createPeerCache } from './peer-cache.ts'
import type { PeerCache } from './peer-cache.ts'
import { createPeerWatch } from './peer-watch.ts'
import type { PeerWatch } from './peer-watch.ts'
import { createReachability } from './reachability.ts'
import type { Reachability, ReachabilityOptions } from './reachability.ts'
import { createRpcService } from './rpc.ts'
import type { RpcService } from './rpc.ts'

export interface NetworkOptions {
  identity: Identity
  transports: TransportFactories
  /** Multiaddrs to listen on; empty: this node only dials. */
  listen: readonly string[]
  /** Further multiaddrs to tell others, where they cannot be seen from here (port forwarding, DNS). */
  announce?: readonly string[] | undefined
  /** Multiaddrs of peers to begin with. */
  bootstrap?: readonly string[] | undefined
  /** Keeps the peers of last time. */
  records?: RecordStore | undefined
  /** Other ways to find peers, such as mDNS. */
  peerDiscovery?: PeerDiscoveryFactories | undefined
  /** Default: noise. */
  connectionEncrypters?: EncrypterFactories | undefined
  /** Another id makes another network. */
  dhtProtocol?: string | undefined
  clock?: Clock | undefined
  random?: Random | undefined
  logger?: Logger | undefined
  metrics?: Metrics | undefined
  /** Silence in the middle of a message that ends a stream. */
  stallMs?: number | undefined
}

/** Discovered neighbours dialled at once. */
const MEETINGS = 16

/**
 * Comes up even with nobody to talk to. Throws `config_invalid` for malformed or unusable addresses, `port_in_use` when
 * a listen address is taken.
 */
export async function createNetwork(options: NetworkOptions): Promise<Network> {
  const { identity, listen, announce = [], bootstrap = [], logger = silentLogger } = options
  const { dhtProtocol = '/shoal/kad/1.0.0', metrics = createMetrics() } = options
  const { clock = systemClock, random = seededRandom('network', identity.peerId) } = options
  const targets = bootstrap.map((text) => parseAddress(text, 'bootstrap address'))
  for (const text of [...listen, ...announce]) parseAddress(text, 'address')

  const stopping = new AbortController()
  const base = { clock, random, logger, metrics, stopping: stopping.signal }
  const onDiscovered = (peer: PeerInfo): void => meet(peer)
  const node = { ...options, ...base, announce, dhtProtocol, onDiscovered }
  const libp2p = await createLibp2pNode(node)
  const meet = createMeetings(libp2p, base)
  const untilServer = (signal: AbortSignal): Promise<void> => discovery.untilServer(signal)
  const { rpc, cache, reachability, peers } = await attach(libp2p, base, options, untilServer)
  await startLibp2pNode(libp2p, listen)

  const self = identity.peerId
  const dialler = createDialler({
    ...base,
    self,
    bootstrap: targets,
    remembered: () => cache.peers(),
    dial: async (addresses, signal) =>
      (await libp2p.dial(addresses, { signal })).remotePeer.toString(),
    connectedPeers: () => libp2p.getPeers().map(String),
  })
  const discovery = createDiscovery({
    ...base,
    self,
    libp2p,
    dht: libp2p.services.dht,
    dhtProtocol,
    isConnected: () => libp2p.getPeers().length > 0,
    isDialling: () => dialler.isTrying(),
    seekServers: () => peers.identifyAgain(),
  })

  return {
    identity,
    peerId: self,
    rpc,
    discovery,
    addresses: () => libp2p.getMultiaddrs().map(String),
    links: () => libp2p.getConnections().map((connection) => linkOf(connection, peers, clock)),
    connectedPeers: () => peers.connected(),
    reachability: () => (reachability.isPublic() ? 'public' : 'unknown'),
    connect: (target, signal) => connect(libp2p, target, clock, signal),
    onConnect: (listener) => peers.onConnect(listener),
    onDisconnect: (listener) => peers.onDisconnect(listener),
    async stop() {
      stopping.abort(new ShoalError('aborted', 'the node is stopping'))
      for (const part of [dialler, discovery, reachability, rpc, cache]) await part.stop()
      const limit = clock.deadline(DEADLINES.shutdownMs, 'closing connections')
      await raceSignal(Promise.resolve(libp2p.stop()), limit).catch((thrown: unknown) => {
        logger.warn('network_not_stopped', { message: messageOf(thrown) })
      })
    },
  }
}

interface Base {
  clock: Clock
  random: Random
  logger: Logger
  metrics: Metrics
  stopping: AbortSignal
}

interface Attached {
  rpc: RpcService
  cache: PeerCache
  reachability: Reachability
  peers: PeerWatch
}

/** What must listen before the first connection can come. */
async function attach(
  libp2p: Libp2pNode,
  base: Base,
  { stallMs, records = createMemoryRecordStore() }: NetworkOptions,
  untilServer: (signal: AbortSignal) => Promise<void>,
): Promise<Attached> {
  const rpc = await createRpcService({
    ...base,
    libp2p,
    stallMs,
    connectionTo: (peer, signal) => connectionTo(libp2p, peer, untilServer, signal),
  })
  const cache = await createPeerCache({ ...base, records, peerStore: libp2p.peerStore })
  const hooks = reachabilityHooks(libp2p, base.logger)
  const reachability = createReachability({ ...base, ...hooks, libp2p, rpc })
  const onIdentified = (id: PeerId): void => {
    cache.note(id)
    reachability.ask(id.toString())
  }
  return { rpc, cache, reachability, peers: createPeerWatch({ ...base, libp2p, onIdentified }) }
}

function reachabilityHooks(
  { services: { dht, addresses } }: Libp2pNode,
  logger: Logger,
): Pick<ReachabilityOptions, 'listenAddresses' | 'onReached' | 'onPublic'> {
  return {
    listenAddresses: () => addresses.all(),
    onReached: (address) => addresses.confirm(address),
    onPublic: () => {
      dht.setMode('server').catch((thrown: unknown) => {
        logger.error('dht_mode_failed', { message: messageOf(thrown) })
      })
    },
  }
}

/** The oldest direct connection first: a dial-back adds one for a moment. */
async function connectionTo(
  libp2p: Libp2pNode,
  peer: string,
  untilServer: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<Connection> {
  const id = peerIdFromString(peer)
  const open = libp2p.getConnections(id).filter(({ status }) => status === 'open')
  const [existing] = [...open.filter(({ remoteAddr }) => isDirect(remoteAddr)), ...open]
  if (existing !== undefined) return existing
  // A peer known by its id alone is looked up in the DHT, for which there must be somebody to ask.
  if (!(await hasAddress(libp2p, id))) await untilServer(signal)
  return libp2p.dial(id, { signal })
}

async function hasAddress(libp2p: Libp2pNode, id: PeerId): Promise<boolean> {
  try {
    return (await libp2p.peerStore.get(id)).addresses.length > 0
  } catch {
    return false
  }
}

function linkOf(connection: Connection, peers: PeerWatch, clock: Clock): Link {
  const { remotePeer, remoteAddr, direction, rtt } = connection
  return {
    peer: remotePeer.toString(),
    address: remoteAddr.toString(),
    transport: transportOf(remoteAddr),
    direct: isDirect(remoteAddr),
    direction,
    rttMs: rtt ?? null,
    ageMs: clock.now() - peers.openedAt(connection),
  }
}

async function connect(
  libp2p: Libp2pNode,
  target: string,
  clock: Clock,
  signal?: AbortSignal,
): Promise<string> {
  const limit = clock.deadline(DEADLINES.dialMs, 'connecting', signal)
  const destination = parseTarget(target)
  try {
    return (await libp2p.dial(destination, { signal: limit })).remotePeer.toString()
  } catch (cause) {
    signal?.throwIfAborted()
    const why = messageOf(limit.aborted ? limit.reason : cause)
    throw new ShoalError('peer_unreachable', `cannot connect to ${target}: ${why}`, { cause })
  }
}

function parseTarget(target: string): PeerId | Multiaddr {
  if (target.startsWith('/')) return parseAddress(target, 'address', 'link_invalid')
  try {
    return peerIdFromString(target)
  } catch (cause) {
    throw new ShoalError(
      'link_invalid',
      `"${target.slice(0, 128)}" is neither a multiaddr (/ip4/…/tcp/…/p2p/…) nor a peer id`,
      { cause },
    )
  }
}

/** Dials discovered neighbours in the background. They are announced again and again: one that fails gets another chance. */
function createMeetings(
  libp2p: Libp2pNode,
  { clock, logger, stopping }: Base,
): (peer: PeerInfo) => void {
  const meeting = new Set<string>()

  async function meet({ id, multiaddrs }: PeerInfo): Promise<void> {
    await libp2p.peerStore.merge(id, { multiaddrs: multiaddrs.slice(0, LIMITS.peerAddresses) })
    await libp2p.dial(id, { signal: clock.deadline(DEADLINES.dialMs, 'connecting', stopping) })
  }

  return (info) => {
    const peer = info.id.toString()
    const isKnown = libp2p.peerId.equals(info.id) || libp2p.getConnections(info.id).length > 0
    if (isKnown || meeting.has(peer) || meeting.size >= MEETINGS) return
    meeting.add(peer)
    meet(info)
      .catch((thrown: unknown) => {
        logger.debug('neighbour_unreachable', { peer, message: messageOf(thrown) })
      })
      .finally(() => meeting.delete(peer))
  }
}
