/** The libp2p configuration, with the reason of every value that is not libp2p's own. */
import { identify, identifyPush } from '@libp2p/identify'
import type { Identify, IdentifyPush } from '@libp2p/identify'
import { start, stop } from '@libp2p/interface'
import type {
  Connection,
  ConnectionGater,
  Libp2p,
  Logger as Libp2pLogger,
  MultiaddrConnection,
  PeerDiscovery,
  PeerInfo,
  ServiceMap,
} from '@libp2p/interface'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import type { KadDHT } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import type { Ping } from '@libp2p/ping'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import type { Libp2pOptions } from 'libp2p'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import { circuitTransport, createCircuits } from './circuits.ts'
import type { Circuits } from './circuits.ts'
import { createBoundedDatastore } from './bounded-datastore.ts'
import { pingDhtServers } from './dht-ping.ts'
import type { Identity } from './identity.ts'
import { createLibp2pLogger } from './libp2p-logger.ts'
import { byPromise } from './peer-dial.ts'
import { PINGS_AT_ONCE } from './ping.ts'
import type { Caps } from './wire.ts'
import { createWireMetrics } from './wire-metrics.ts'

type Factories<K extends 'transports' | 'connectionEncrypters' | 'peerDiscovery'> = NonNullable<
  Libp2pOptions[K]
>
export type TransportFactories = Factories<'transports'>
export type EncrypterFactories = Factories<'connectionEncrypters'>
export type PeerDiscoveryFactories = Factories<'peerDiscovery'>
/** What libp2p hands to each of its parts. */
export type Components = Parameters<TransportFactories[number]>[0]

export interface Libp2pNodeOptions {
  identity: Identity
  transports: TransportFactories
  connectionEncrypters?: EncrypterFactories | undefined
  peerDiscovery?: PeerDiscoveryFactories | undefined
  listen: readonly string[]
  announce: readonly string[]
  dhtProtocol: string
  logger: Logger
  metrics: Metrics
  clock: Clock
  caps: Caps
  gate: ConnectionGater
  /** Peers found by `peerDiscovery`, not those that the DHT mentions. */
  onDiscovered: (peer: PeerInfo) => void
}

interface OwnAddresses {
  /** All that this node listens on or announces, with its peer id. */
  all(): Multiaddr[]
  /** Announces a listen address from now on: public ones are kept back until somebody has reached them. */
  confirm(address: Multiaddr): void
  withdraw(address: Multiaddr): void
}

/** Makes connections of wires that no transport has opened: punched ones. */
export interface Upgrade {
  readonly log: Libp2pLogger
  outbound(wire: MultiaddrConnection, signal: AbortSignal): Promise<Connection>
  inbound(wire: MultiaddrConnection, signal: AbortSignal): Promise<void>
}

/** Further addresses to listen on, where that is possible. */
interface Listeners {
  open(addresses: readonly string[]): Promise<void>
}

interface Neighbours {
  start(): Promise<void>
  stop(): Promise<void>
}

interface Services extends ServiceMap {
  identify: Identify
  identifyPush: IdentifyPush
  ping: Ping
  dht: KadDHT
  addresses: OwnAddresses
  circuits: Circuits
  upgrade: Upgrade
  listeners: Listeners
  neighbours: Neighbours
}

export type Libp2pNode = Libp2p<Services>

const HOUR_MS = 3_600_000
const MIB = 1 << 20

/** Not started yet. */
export async function createLibp2pNode(options: Libp2pNodeOptions): Promise<Libp2pNode> {
  const { identity, logger, metrics, clock } = options
  const selfKey = `/peers/${peerIdFromString(identity.peerId).toCID().toString()}`
  return createLibp2p<Services>({
    start: false,
    privateKey: identity.privateKey,
    nodeInfo: { name: 'shoal', userAgent: 'shoal' },
    // Added, not instead: a neighbour on the LAN still needs the LAN address.
    addresses: { listen: [...options.listen], appendAnnounce: [...options.announce] },
    transports: [...options.transports, circuitTransport()],
    connectionEncrypters: options.connectionEncrypters ?? [noise()],
    streamMuxers: [yamux({ streamOptions: YAMUX_STREAMS })],
    datastore: createBoundedDatastore(LIMITS.datastoreEntries, (key) => key === selfKey),
    connectionGater: options.gate,
    connectionManager: CONNECTIONS,
    connectionMonitor: {
      // Half of the idle CPU of a many-node process at the default of 10 s. A cut link is noticed within 90 s here, and
      // by the deadline of any call that uses it.
      pingInterval: 30_000,
      // A node whose machine is busy may be late by many seconds without being gone, and a ping is several messages: one
      // that is given up takes the connection along, with all that is under way on it.
      pingTimeout: { minTimeout: 60_000 },
    },
    peerStore: {
      // libp2p 3.3 dates an address by its first sight only, so that an address confirmed every minute still expires
      // after `maxAddressAge`; and kad-dht answers no look-up for a key one of whose providers has expired here.
      maxAddressAge: 24 * HOUR_MS,
      maxPeerAge: 24 * HOUR_MS,
    },
    logger: createLibp2pLogger(logger),
    metrics: () => createWireMetrics(metrics, clock, options.caps),
    services: {
      identify: identify(),
      // Tells neighbours at once that this node has become a DHT server (default 1 s).
      identifyPush: identifyPush({ debounce: 200 }),
      ping: (components) =>
        pingDhtServers(
          ping({ maxInboundStreams: PINGS_AT_ONCE, maxOutboundStreams: PINGS_AT_ONCE })(components),
          options.dhtProtocol,
          components.peerStore,
          clock,
        ),
      dht: kadDHT(dhtOptions(options.dhtProtocol)),
      addresses: ({ addressManager }) => ownAddresses(addressManager, identity.peerId),
      circuits: (components) => createCircuits(components, options.clock),
      upgrade: ({ upgrader, logger: componentLogger }) => ({
        outbound: (connection, signal) => upgrader.upgradeOutbound(connection, { signal }),
        inbound: (connection, signal) => upgrader.upgradeInbound(connection, { signal }),
        log: componentLogger.forComponent('shoal:punch'),
      }),
      listeners: ({ transportManager }) => ({
        async open(addresses) {
          for (const address of addresses) {
            await transportManager.listen([multiaddr(address)]).catch((thrown: unknown) => {
              logger.warn('not_listening', { address, message: messageOf(thrown) })
            })
          }
        },
      }),
      neighbours: (components) =>
        startAll(
          (options.peerDiscovery ?? []).map((create) => create(components)),
          options,
        ),
    },
  })
}

/** The defaults (window 16 MiB, read buffer 4 MiB) reset a stream whose reader pauses. */
const YAMUX_STREAMS = {
  initialStreamWindowSize: MIB,
  maxStreamWindowSize: 4 * MIB,
  maxReadBufferLength: 8 * MIB,
}

const CONNECTIONS = {
  maxConnections: LIMITS.connections,
  // Default 5 a second per IP: the nodes of one household, class room or test behind one address start together.
  inboundConnectionThreshold: 64,
  maxIncomingPendingConnections: 64,
  dialTimeout: DEADLINES.dialMs,
  addressDialTimeout: DEADLINES.dialAddressMs,
  addressSorter: byPromise,
}

function dhtOptions(protocol: string): NonNullable<Parameters<typeof kadDHT>[0]> {
  return {
    protocol,
    // Explicit, else kad-dht decides by whether an address looks public: with private addresses all stay clients and
    // every query hangs; with WebRTC a node behind a NAT becomes a server. `reachability.ts` knows better.
    clientMode: true,
    // Private addresses stay in: a swarm on one machine or LAN has no others, and a peer is pinged before it enters the
    // routing table. The default mapper drops them, and then the table stays empty.
    peerInfoMapper: passthroughMapper,
    // Without it a query on an empty routing table, and any before the first self-query, waits for its whole deadline.
    allowQueryWithZeroPeers: true,
    // Records are announced again every 20 minutes by `discovery.ts`: what is older than an hour is a dead peer's.
    // (Default 48 h, and kad-dht would repeat its own.)
    reprovide: { validity: HOUR_MS, interval: HOUR_MS / 6, threshold: 0 },
  }
}

function ownAddresses(addressManager: Components['addressManager'], self: string): OwnAddresses {
  return {
    all: () =>
      addressManager
        .getAddressesWithMetadata()
        // Others (observed, mapped) are where others have reached this node: of its router, it may be.
        .filter(({ type }) => type === 'transport' || type === 'announce')
        .map((own) => own.multiaddr.encapsulate(`/p2p/${self}`)),
    confirm: (address) => {
      const own = addressManager.getAddressesWithMetadata()
      const isOwn = own.some((known) => isSameAddress(known.multiaddr, address))
      addressManager.confirmObservedAddr(address, isOwn ? undefined : { type: 'observed' })
    },
    withdraw: (address) => addressManager.removeObservedAddr(address),
  }
}

function isSameAddress(a: Multiaddr, b: Multiaddr): boolean {
  const [bare] = b.toString().split('/p2p/')
  return a.toString().split('/p2p/')[0] === bare
}

/** Discovery is a help: where multicast is forbidden a node starts all the same. */
function startAll(
  sources: readonly PeerDiscovery[],
  { logger, onDiscovered }: Libp2pNodeOptions,
): Neighbours {
  for (const source of sources) {
    source.addEventListener('peer', ({ detail }) => onDiscovered(detail))
  }
  return {
    async start() {
      for (const source of sources) {
        await start(source).catch((thrown: unknown) => {
          logger.warn('peer_discovery_failed', { message: messageOf(thrown) })
        })
      }
    },
    stop: () => stop(...sources),
  }
}

/** Throws `port_in_use` or `config_invalid` for addresses that cannot be listened on. */
export async function startLibp2pNode(node: Libp2pNode, listen: readonly string[]): Promise<void> {
  try {
    await node.start()
  } catch (cause) {
    const [why = ''] =
      messageOf(cause).match(/EADDRINUSE|already in use|EACCES|EADDRNOTAVAIL/) ?? []
    const where = listen.join(', ')
    if (why === 'EADDRINUSE' || why === 'already in use') {
      throw new ShoalError(
        'port_in_use',
        `cannot listen on ${where}: the port is taken; stop the other program or choose another port (0 = any)`,
        { cause },
      )
    }
    throw new ShoalError('config_invalid', `cannot listen on ${where}${why && `: ${why}`}`, {
      cause,
    })
  }
}
