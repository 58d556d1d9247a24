/** Keeps a port of the router forwarded to this machine for as long as the node runs, where the router lets it. */
import { isIPv4 } from 'node:net'
import { multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../../src/clock.ts'
import { asFault, messageOf, ShoalError } from '../../src/errors.ts'
import type { Logger } from '../../src/log.ts'
import type { Metrics } from '../../src/metrics.ts'
import { hostOf, isGlobalHost, portOf, transportOf } from '../../src/net/addresses.ts'
import type { Endpoint, PortForwarding } from '../../src/net/nat.ts'
import { defaultGateway } from './gateway.ts'
import { createPcpClient } from './pcp.ts'
import type { PortGrant } from './pcp.ts'
import { PCP_PORT } from './pcp-messages.ts'
import { findGateway, mapPort, outsideHost, unmapPort } from './upnp.ts'
import type { Gateway } from './upnp.ts'

/** Of a node that is killed, the mapping ends by itself, but with routers that know permanent mappings only. */
const LEASE_SECONDS = 3600
/** Renewed well before: a router that has restarted has forgotten, and this machine may be in another network. */
const CHECK_MS = 600_000
/** By PCP that takes two packets. */
const PCP_CHECK_MS = 120_000
const CHECK_MIN_MS = 30_000
const FAREWELL_MS = 2_000

export interface PortMapping {
  /** What the router forwards now. */
  forwarding(): PortForwarding | undefined
  /** Gives the port back. */
  close(): Promise<void>
}

export interface PortMappingOptions {
  port: number
  clock: Clock
  logger: Logger
  metrics: Metrics
  /** Other places to look for a router, for tests. */
  gateway?: ((signal: AbortSignal) => Promise<Endpoint | undefined>) | undefined
  searchAt?: Endpoint | undefined
}

/** The port that a node listens on at an address of its LAN, which is the router's to forward. */
export function lanPortOf(addresses: readonly string[]): number | undefined {
  for (const text of addresses) {
    const address = multiaddr(text)
    const host = hostOf(address) ?? ''
    const isOfLan = isIPv4(host) && !isGlobalHost(host) && !host.startsWith('127.')
    if (isOfLan && transportOf(address) === 'tcp') return portOf(address)
  }
  return undefined
}

export function keepPortMapped(options: PortMappingOptions): PortMapping {
  const { port, clock, logger } = options
  const stopping = new AbortController()
  const ways = [byPcp(options), byUpnp(options)]
  let current: PortForwarding | undefined
  /** What has granted it. */
  let held: Way | undefined
  let leaseEndsMs = 0

  /** By what worked before, if anything did; else by whatever works first. */
  async function map(): Promise<number> {
    const faults: string[] = []
    let isRefused = false
    for (const way of ways.toSorted((a, b) => Number(b === held) - Number(a === held))) {
      try {
        const grant = await way.map(stopping.signal)
        if (current === undefined) logger.info('port_mapped', { ...grant.forwarding })
        current = grant.forwarding
        held = way
        leaseEndsMs = clock.now() + grant.seconds * 1000
        return Math.max(CHECK_MIN_MS, Math.min(way.checkMs, grant.seconds * 500))
      } catch (thrown) {
        stopping.signal.throwIfAborted()
        const { code, message } = asFault(thrown)
        if (way === held && code === 'refused') isRefused = true
        faults.push(message)
      }
    }
    // What a silent router has granted holds until its lease ends.
    if (current !== undefined && !isRefused && clock.now() < leaseEndsMs) return CHECK_MIN_MS
    current = undefined
    held = undefined
    logger.debug('no_port_mapping', { port, message: faults.join('; ') })
    return CHECK_MS
  }

  async function run(): Promise<void> {
    for (;;) await clock.sleep(await map(), stopping.signal)
  }
  const running = run().catch((thrown: unknown) => {
    if (!stopping.signal.aborted)
      logger.error('port_mapping_failed', { message: messageOf(thrown) })
  })

  return {
    forwarding: () => current,
    async close() {
      stopping.abort()
      await running
      current = undefined
      const limit = clock.deadline(FAREWELL_MS, 'giving the port back')
      const ends = ways.map((way) =>
        way.unmap(limit).catch((thrown: unknown) => {
          logger.debug('port_not_unmapped', { port, message: messageOf(thrown) })
        }),
      )
      await Promise.all(ends)
    },
  }
}

/** One way to have a port forwarded. */
interface Way {
  checkMs: number
  /** Rejects with `refused` and the router's reason, or with `peer_unreachable`. */
  map(signal: AbortSignal): Promise<PortGrant>
  /** Ends what may have been granted, its answer heard or not. */
  unmap(signal: AbortSignal): Promise<void>
}

function byPcp({
  port,
  clock,
  logger,
  metrics,
  gateway = gatewayOfSystem,
}: PortMappingOptions): Way {
  const client = createPcpClient({
    port,
    clock,
    onIgnored: (reason) => metrics.add('router_packets_ignored_total', 1, reason),
    onRestart: (router) => logger.info('router_restarted', { router }),
  })
  return {
    checkMs: PCP_CHECK_MS,
    unmap: (signal) => client.unmap(signal),
    async map(signal) {
      const router = await gateway(signal)
      if (router === undefined)
        throw new ShoalError('peer_unreachable', 'the system names no router')
      const grant = await client.map(router, LEASE_SECONDS, signal)
      if (grant === undefined)
        throw new ShoalError('peer_unreachable', 'no router answers to PCP or NAT-PMP')
      return grant
    },
  }
}

async function gatewayOfSystem(signal: AbortSignal): Promise<Endpoint | undefined> {
  const host = await defaultGateway(signal)
  return host === undefined ? undefined : { host, port: PCP_PORT }
}

function byUpnp({ port, searchAt }: PortMappingOptions): Way {
  /** Asked for a mapping, whether or not its answer has come. */
  let asked: Gateway | undefined
  return {
    checkMs: CHECK_MS,
    async unmap(signal) {
      if (asked !== undefined) await unmapPort(asked, port, signal)
    },
    async map(signal) {
      const gateway = await findGateway(signal, searchAt)
      if (gateway === undefined)
        throw new ShoalError('peer_unreachable', 'no router answers to UPnP')
      asked = gateway
      await mapPort(gateway, port, LEASE_SECONDS, signal)
      const host = await outsideHost(gateway, signal).catch(() => undefined)
      const outside = host === undefined ? null : { host, port }
      const forwarding = { protocol: 'upnp', router: gateway.host, port, outside } as const
      return { forwarding, seconds: LEASE_SECONDS }
    },
  }
}
