/** createNetwork(): a libp2p node with Shoal's protocols, behind the `Network` port. */
import type { Connection, PeerId, PeerInfo } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Clock } from '../clock.ts'
import { raceSignal, systemClock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import { silentLogger } from '../log.ts'
import type { Logger } from '../log.ts'
import { createMetrics } from '../metrics.ts'
import type { Metrics } from '../metrics.ts'
import { seededRandom } from '../random.ts'
import type { Random } from '../random.ts'
import { createMemoryRecordStore } from '../store/memory.ts'
import type { RecordStore } from '../store/record-store.ts'
import { isDirect, parseAddress, transportOf } from './addresses.ts'
import { createConnectivity } from './connectivity.ts'
import type { Connectivity, ConnectivityOptions } from './connectivity.ts'
import { createDialler } from './dialler.ts'
import type { Dialler } from './dialler.ts'
import { diagnose } from './diagnosis.ts'
import { createDiscovery } from './discovery.ts'
import type { DiscoveryService } from './discovery.ts'
import { createFairRate } from './fair-rate.ts'
import type { Identity } from './identity.ts'
import { createLibp2pNode, startLibp2pNode } from './libp2p-node.ts'
import type {
  EncrypterFactories,
  Libp2pNode,
  PeerDiscoveryFactories,
  TransportFactories,
} from './libp2p-node.ts'
import type { Link, Network } from './network.ts'
import { connectionTo, connectTo, createMeetings } from './peer-dial.ts'
import { createPathHistory } from './path-history.ts'
import type { PathHistory } from './path-history.ts'
import { createPeerCache } from './peer-cache.ts'
import type { PeerCache } from './peer-cache.ts'
import { createGate } from './gate.ts'
import { createOffences } from './offences.ts'
import type { Offences } from './offences.ts'
import { createPeerWatch } from './peer-watch.ts'
import type { PeerWatch } from './peer-watch.ts'
import { createRpcService } from './rpc.ts'
import type { RpcService } from './rpc.ts'
import { nameWire, NO_COUNTS, wireOf } from './wire.ts'
import type { Caps } from './wire.ts'

/** What a network is made of; only identity, transports and listen addresses are needed. */
export interface NetworkOptions extends ConnectivityOptions {
  identity: Identity
  transports: TransportFactories
  /** Multiaddrs to listen on; empty: this node only dials. */
  listen: readonly string[]
  /** Listened on where that is possible. */
  listenIfFree?: readonly string[] | undefined
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
  /** Caps on all connections together, shared fairly between peers; relayed ones count with their relay. */
  uploadBytesPerSecond?: number | undefined
  downloadBytesPerSecond?: number | undefined
}

/**
 * Comes up even with nobody to talk to. Throws `config_invalid` for malformed or unusable addresses, `port_in_use` when
 * a listen address is taken.
 */
export async function createNetwork(options: NetworkOptions): Promise<Network> {
  const { identity, listen, announce = [], bootstrap = [], logger = silentLogger } = options
  const { listenIfFree = [], isLanOnly = false } = options
  const { dhtProtocol = '/shoal/kad/1.0.0', metrics = createMetrics() } = options
  const { clock = systemClock, random = seededRandom('network', identity.peerId) } = options
  const targets = bootstrap.map((text) => parseAddress(text, 'bootstrap address'))
  for (const text of [...listen, ...listenIfFree, ...announce]) parseAddress(text, 'address')

  const stopping = new AbortController()
  const sendAway = (peer: string): void => closeAll(libp2p, peer)
  const offences = createOffences({ clock, logger, metrics, sendAway })
  const base = { clock, random, logger, metrics, offences, stopping: stopping.signal }
  const onDiscovered = (peer: PeerInfo): void => meet(peer)
  const caps = capsOf(options, clock)
  const gate = createGate({ offences, isLanOnly })
  const node = { ...options, ...base, announce, dhtProtocol, caps, gate, onDiscovered }
  const libp2p = await createLibp2pNode(node)
  libp2p.addEventListener('connection:open', ({ detail }) => nameWire(detail))
  const meet = createMeetings(libp2p, base)
  const untilServer = (signal: AbortSignal): Promise<void> => discovery.untilServer(signal)
  const { rpc, cache, peers, history } = await attach(libp2p, base, options, untilServer)

  const self = identity.peerId
  const late: { dialler?: Dialler } = {}
  const discovery = createDiscovery({
    ...base,
    self,
    libp2p,
    dht: libp2p.services.dht,
    dhtProtocol,
    isConnected: () => libp2p.getPeers().length > 0,
    isDialling: () => late.dialler?.isTrying() ?? true,
    seekServers: () => peers.identifyAgain(),
  })
  const connectivity = await createConnectivity({ libp2p, rpc, peers, discovery, base }, options)
  await startLibp2pNode(libp2p, listen)
  await libp2p.services.listeners.open(listenIfFree)
  connectivity.start()
  late.dialler = createDialler({
    ...base,
    self,
    bootstrap: targets,
    remembered: () => cache.peers(),
    dial: async (addresses, signal) =>
      (await libp2p.dial(addresses, { signal })).remotePeer.toString(),
    connectedPeers: () => libp2p.getPeers().map(String),
  })

  return {
    ...networkOf({
      history,
      identity,
      libp2p,
      rpc,
      peers,
      discovery,
      connectivity,
      base,
      untilServer,
    }),
    async stop() {
      stopping.abort(new ShoalError('aborted', 'the node is stopping'))
      for (const part of [late.dialler, connectivity, discovery, rpc, cache]) await part?.stop()
      const limit = clock.deadline(DEADLINES.shutdownMs, 'closing connections')
      await raceSignal(Promise.resolve(libp2p.stop()), limit).catch((thrown: unknown) => {
        logger.warn('network_not_stopped', { message: messageOf(thrown) })
      })
      for (const cap of [caps.upload, caps.download]) cap?.stop()
    },
  }
}

interface Parts {
  history: PathHistory
  identity: Identity
  libp2p: Libp2pNode
  rpc: RpcService
  peers: PeerWatch
  discovery: DiscoveryService
  connectivity: Connectivity
  base: NetworkBase
  untilServer: (signal: AbortSignal) => Promise<void>
}

function networkOf({
  history,
  identity,
  libp2p,
  rpc,
  peers,
  discovery,
  connectivity,
  base,
  untilServer,
}: Parts): Omit<Network, 'stop'> {
  const { clock } = base
  const links = (): Link[] =>
    libp2p.getConnections().map((connection) => linkOf(connection, peers, history, clock))
  return {
    identity,
    peerId: identity.peerId,
    rpc,
    discovery,
    links,
    addresses: () => libp2p.getMultiaddrs().map(String),
    connectedPeers: () => peers.connected(),
    reachability: () => connectivity.reachability(),
    nat: () => connectivity.nat(),
    relays: () => connectivity.relays(),
    relaying: () => relayingOf(connectivity),
    diagnose: ({ peer, signal }) =>
      diagnose(
        { ...connectivity, rpc, clock, links, peers: () => peers.connected() },
        peer,
        signal,
      ),
    connect: (target, signal) => connectTo(target, { libp2p, untilServer, clock }, signal),
    onConnect: (listener) => peers.onConnect(listener),
    onDisconnect: (listener) => peers.onDisconnect(listener),
  }
}

/** What all parts of a network share. */
export interface NetworkBase {
  clock: Clock
  random: Random
  logger: Logger
  metrics: Metrics
  stopping: AbortSignal
  offences: Offences
}

interface Attached {
  history: PathHistory
  rpc: RpcService
  cache: PeerCache
  peers: PeerWatch
}

/** What must listen before the first connection can come. */
async function attach(
  libp2p: Libp2pNode,
  base: NetworkBase,
  { stallMs, records = createMemoryRecordStore() }: NetworkOptions,
  untilServer: (signal: AbortSignal) => Promise<void>,
): Promise<Attached> {
  const rpc = await createRpcService({
    ...base,
    libp2p,
    stallMs,
    connectionTo: (peer, signal) =>
      connectionTo(peer, { libp2p, untilServer, clock: base.clock }, signal),
  })
  const cache = await createPeerCache({ ...base, records, peerStore: libp2p.peerStore })
  const onIdentified = (id: PeerId): void => cache.note(id)
  const history = createPathHistory({ libp2p, clock: base.clock })
  return { rpc, cache, history, peers: createPeerWatch({ ...base, libp2p, onIdentified }) }
}

/** At once: what a peer that is sent away has to say is not waited for. */
function closeAll(libp2p: Libp2pNode, peer: string): void {
  for (const connection of libp2p.getConnections(peerIdFromString(peer))) {
    connection.abort(new Error('it broke the rules too often'))
  }
}

function capsOf(
  { uploadBytesPerSecond: upload, downloadBytesPerSecond: download }: NetworkOptions,
  clock: Clock,
): Caps {
  return {
    upload: upload === undefined ? undefined : createFairRate(upload, clock),
    download: download === undefined ? undefined : createFairRate(download, clock),
  }
}

function linkOf(
  connection: Connection,
  peers: PeerWatch,
  history: PathHistory,
  clock: Clock,
): Link {
  const { remotePeer, remoteAddr, direction, rtt } = connection
  return {
    peer: remotePeer.toString(),
    address: remoteAddr.toString(),
    transport: transportOf(remoteAddr),
    direct: isDirect(remoteAddr),
    direction,
    rttMs: rtt ?? null,
    ageMs: clock.now() - peers.openedAt(connection),
    ...(wireOf(connection)?.counts() ?? NO_COUNTS),
    history: history.of(remotePeer.toString()),
  }
}

function relayingOf(connectivity: Connectivity): ReturnType<Network['relaying']> {
  const server = connectivity.relayServer()
  return server === undefined ? null : { limits: server.limits, use: server.use() }
}
