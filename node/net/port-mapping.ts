/** Keeps a port of the router forwarded to this machine for as long as the node runs, where the router lets it. */
import { isIPv4 } from 'node:net'
import { multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../../src/clock.ts'
import { messageOf, ShoalError } from '../../src/errors.ts'
import type { Logger } from '../../src/log.ts'
import { hostOf, isGlobalHost, portOf, transportOf } from '../../src/net/addresses.ts'
import type { Endpoint } from '../../src/net/nat.ts'
import { findGateway, mapPort, unmapPort } from './upnp.ts'
import type { Gateway } from './upnp.ts'

/** Of a node that is killed, the mapping ends by itself, but with routers that know permanent mappings only. */
const LEASE_SECONDS = 3600
/** Renewed well before: a router that has restarted has forgotten, and this machine may be in another network. */
const CHECK_MS = 600_000
const FAREWELL_MS = 1_000

export interface PortMapping {
  /** Gives the port back. */
  close(): Promise<void>
}

export interface PortMappingOptions {
  port: number
  clock: Clock
  logger: Logger
  /** Another place than the multicast group to look for a router, for tests. */
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

export function keepPortMapped({ port, clock, logger, searchAt }: PortMappingOptions): PortMapping {
  const stopping = new AbortController()
  /** The router that may have a mapping: asked for one, whether or not its answer has come. */
  let asked: Gateway | undefined
  let isMapped = false

  async function map(): Promise<void> {
    const gateway = await findGateway(stopping.signal, searchAt)
    if (gateway === undefined) throw new ShoalError('refused', 'no router answers to UPnP')
    const before = asked
    asked = gateway
    await mapPort(gateway, port, LEASE_SECONDS, stopping.signal).catch((thrown: unknown) => {
      // What is not ours is not ours to take back: another machine may have the port.
      if (thrown instanceof ShoalError && thrown.code === 'refused') asked = before
      throw thrown
    })
    if (!isMapped) logger.info('port_mapped', { port, router: gateway.host })
    isMapped = true
  }

  async function run(): Promise<void> {
    for (;;) {
      await map().catch((thrown: unknown) => {
        stopping.signal.throwIfAborted()
        isMapped = false
        logger.debug('no_port_mapping', { port, message: messageOf(thrown) })
      })
      await clock.sleep(CHECK_MS, stopping.signal)
    }
  }
  const running = run().catch((thrown: unknown) => {
    if (!stopping.signal.aborted)
      logger.error('port_mapping_failed', { message: messageOf(thrown) })
  })

  return {
    async close() {
      stopping.abort()
      await running
      if (asked === undefined) return
      const limit = clock.deadline(FAREWELL_MS, 'giving the port back')
      await unmapPort(asked, port, limit).catch((thrown: unknown) => {
        logger.debug('port_not_unmapped', { port, message: messageOf(thrown) })
      })
    },
  }
}
