/** The daemon: one node with its data folder, its network, its engine and the local API, until it is told to stop. */
import { networkInterfaces } from 'node:os'
import { raceSignal, systemClock, type Clock } from '../src/clock.ts'
import { ShoalError } from '../src/errors.ts'
import { DEADLINES } from '../src/limits.ts'
import type { Logger } from '../src/log.ts'
import { createMetrics, type Metrics } from '../src/metrics.ts'
import { createNetwork } from '../src/net/host.ts'
import type { NetworkOptions } from '../src/net/host.ts'
import type { Network } from '../src/net/network.ts'
import { createNode } from '../src/node.ts'
import { removeApiFile, writeApiFile } from './api/api-file.ts'
import { createApiServer } from './api/server.ts'
import type { ApiServer, ApiServerOptions } from './api/server.ts'
import type { Config } from './config.ts'
import { createEngine } from './engine/engine.ts'
import { createLogger } from './log.ts'
import { nodeEncrypters } from './net/tls.ts'
import { natProbe } from './net/nat-probe.ts'
import { keepPortMapped, lanPortOf } from './net/port-mapping.ts'
import type { PortMapping } from './net/port-mapping.ts'
import { openReflector } from './net/reflector.ts'
import type { Reflector } from './net/reflector.ts'
import { scopeOf } from './net/scope.ts'
import {
  loadPeerConnection,
  localNetworkDiscovery,
  nodePunchers,
  nodeTransports,
} from './net/transports.ts'
import { openDataFolder } from './store/data-folder.ts'
import { VERSION } from './version.ts'

const DEFAULT_LISTEN = '/ip4/0.0.0.0/tcp/4010'
const ANY_PORT_LISTEN = '/ip4/0.0.0.0/tcp/0'
const DEFAULT_API_PORT = 4011
/** For networks that let nothing out but the web: TCP and, for proxies that look closer, WebSocket. */
const WEB_LISTEN = ['/ip4/0.0.0.0/tcp/443', '/ip4/0.0.0.0/tcp/80/ws']
/** Those of STUN; two, because a NAT may treat ports of one host differently. */
const REFLECTOR_PORTS = [3478, 3479]

export interface DaemonOptions {
  config: Config
  /** Asks for a clean end. */
  signal: AbortSignal
  /** Called once, when the node is up and the API answers. */
  onReady: (ready: DaemonReady) => void
}

export interface DaemonReady {
  version: string
  peerId: string
  addresses: string[]
  apiUrl: string
  dataDir: string
  pid: number
}

/**
 * Resolves after a clean end. Throws `data_folder_in_use`, `port_in_use`, `config_invalid`, `engine_failed` or
 * `storage_failed` when it cannot start; then nothing is left running.
 */
export async function runDaemon({ config, signal, onReady }: DaemonOptions): Promise<void> {
  const logger = createLogger(config.log)
  exitOnCrash(logger, config.dataDir)
  const told = new AbortController()
  const shutdown = (): void => told.abort(new ShoalError('aborted', 'told to stop'))
  const ends: End[] = []
  try {
    const ready = await start({ config, logger, shutdown, ends })
    logger.info('daemon_started', { version: VERSION, peerId: ready.peerId })
    onReady(ready)
    await aborted(AbortSignal.any([signal, told.signal]))
    logger.info('daemon_stopping')
  } finally {
    await stop(ends, logger)
  }
  logger.info('daemon_stopped')
}

/** Undoes one step of the start. */
interface End {
  what: string
  run: () => void | Promise<void>
}

interface Start {
  config: Config
  logger: Logger
  shutdown: () => void
  /** Filled as the start proceeds, so that a start that fails halfway is undone as far as it came. */
  ends: End[]
}

async function start({ config, logger, shutdown, ends }: Start): Promise<DaemonReady> {
  const { dataDir } = config
  const clock = systemClock
  const metrics = createMetrics()
  const folder = await openDataFolder(dataDir, logger)
  ends.push({ what: 'data folder', run: () => folder.close() })

  const { records, blobs, identity } = folder
  const network = await openNetwork(config, { identity, records, clock, logger, metrics })
  ends.push({ what: 'network', run: () => network.stop() })
  const { backend, threads } = config.engine
  const engine = await createEngine({
    backend,
    logger,
    ...(threads !== undefined && { threads }),
  })
  ends.push({ what: 'engine', run: () => engine.close() })

  const node = await createNode({ network, records, blobs, engine, metrics, clock, logger })
  // From here on the node ends its network and its engine itself.
  ends.splice(1, 2, { what: 'node', run: () => node.stop() })

  const { token } = folder
  const api = await openApi(config, { node, token, dataDir, clock, logger, shutdown })
  ends.push({ what: 'local API', run: () => api.close() })
  writeApiFile(dataDir, { url: api.url, pid: process.pid })
  ends.push({ what: 'api.json', run: () => removeApiFile(dataDir) })

  return {
    version: VERSION,
    peerId: node.peerId,
    addresses: node.status().addresses,
    apiUrl: api.url,
    dataDir,
    pid: process.pid,
  }
}

interface Services {
  clock: Clock
  logger: Logger
  metrics: Metrics
}

async function openNetwork(
  config: Config,
  services: Pick<NetworkOptions, 'identity' | 'records'> & Services,
): Promise<Network> {
  const { announce, mdns, punch } = config
  const scope = scopeOf(config)
  const late: { mapping?: PortMapping | undefined } = {}
  const reflector = config.public
    ? await openReflector({ ...services, ports: REFLECTOR_PORTS })
    : undefined
  const options = {
    ...services,
    announce,
    ...scope,
    transports: nodeTransports(),
    connectionEncrypters: nodeEncrypters(services),
    peerDiscovery: mdns ? localNetworkDiscovery() : undefined,
    punchers: nodePunchers().filter(({ kind }) => punch.includes(kind)),
    PeerConnection: punch.includes('webrtc')
      ? await loadPeerConnection(services.logger)
      : undefined,
    natProbe: natProbe(),
    forwarding: () => late.mapping?.forwarding(),
    uploadBytesPerSecond: bytesPerSecond(config.upload.megabitsPerSecond),
    downloadBytesPerSecond: bytesPerSecond(config.download.megabitsPerSecond),
    ...(reflector !== undefined && {
      isPublic: true,
      relay: config.relay,
      reflectorPorts: reflector.ports,
    }),
  }
  try {
    const network = await firstFree(
      config.listen,
      [[DEFAULT_LISTEN], [ANY_PORT_LISTEN]],
      (listen) => createNetwork({ ...options, listen, listenIfFree: others(config, listen) }),
    )
    late.mapping = mapPort(config, network, services)
    return closingWith(network, [reflector, late.mapping])
  } catch (cause) {
    await reflector?.close()
    throw cause
  }
}

/** Listened on where that is possible: IPv6 too, unless addresses were asked for, and the ports of the web. */
function others(config: Config, listen: readonly string[]): string[] {
  const web = config.public && config.webPorts ? WEB_LISTEN : []
  const byIp6 = [...(config.listen === undefined ? listen : []), ...web].map((address) =>
    address.replace('/ip4/0.0.0.0/', '/ip6/::/'),
  )
  return [...web, ...(hasIp6() ? byIp6 : [])]
}

/** Beyond this machine and the wire that it is on. */
function hasIp6(): boolean {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  return all.some(
    ({ family, internal, address }) =>
      family === 'IPv6' && !internal && !/^fe[89ab]/i.test(address),
  )
}

function bytesPerSecond(megabitsPerSecond: number | undefined): number | undefined {
  return megabitsPerSecond === undefined ? undefined : (megabitsPerSecond * 1e6) / 8
}

/** At home, behind a router that may forward the port. */
function mapPort(config: Config, network: Network, services: Services): PortMapping | undefined {
  const isAtHome = !config.public && config.network !== 'lan'
  const port = lanPortOf(network.addresses())
  if (!config.portMapping || !isAtHome || port === undefined) return undefined
  return keepPortMapped({ ...services, port })
}

function closingWith(
  network: Network,
  parts: readonly (Reflector | PortMapping | undefined)[],
): Network {
  return {
    ...network,
    async stop() {
      await network.stop()
      for (const part of parts) await part?.close()
    },
  }
}

async function openApi(
  config: Config,
  services: Omit<ApiServerOptions, 'port'>,
): Promise<ApiServer> {
  return await firstFree(config.api.port, [DEFAULT_API_PORT, 0], (port) =>
    createApiServer({ ...services, port }),
  )
}

/** A port that was asked for must be free; without a wish the next of `defaults` will do as well. */
async function firstFree<P, T>(
  given: P | undefined,
  defaults: readonly [P, P],
  open: (port: P) => Promise<T>,
): Promise<T> {
  if (given !== undefined) return await open(given)
  try {
    return await open(defaults[0])
  } catch (cause) {
    if (!(cause instanceof ShoalError) || cause.code !== 'port_in_use') throw cause
    return await open(defaults[1])
  }
}

/** In reverse order of the start. What hangs or fails is logged and keeps nothing else from ending. */
async function stop(ends: readonly End[], logger: Logger): Promise<void> {
  const deadline = systemClock.deadline(DEADLINES.shutdownMs, 'the shutdown')
  for (const { what, run } of ends.toReversed()) {
    try {
      await raceSignal(Promise.resolve(run()), deadline)
    } catch (error) {
      logger.error('shutdown_failed', { what, error })
    }
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  await new Promise((resolve) => {
    signal.addEventListener('abort', resolve, { once: true })
  })
}

/** A fault that nobody expected leaves the process in a state that nobody knows: log it and end. */
function exitOnCrash(logger: Logger, dataDir: string): void {
  process.on('uncaughtException', (error) => {
    logger.error('crash', { error })
    removeApiFile(dataDir)
    process.exit(1)
  })
}
