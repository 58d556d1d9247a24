/**
 * What stands between this node and the internet, as reflectors see it: public peers that tell where a packet came from
 * (STUN, RFC 8489, and RFC 5780 for how a NAT behaves).
 */
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { PeerRpc } from './network.ts'

const METHOD = 'net/reflector'
const MESSAGE_BYTES = 1024
/** Some ten packets each time; a router may be replaced, or its settings, without a change of address. */
const REPORT_MS = 120_000
const TICK_MS = 1_000
/** Reflectors kept: two tell how a NAT maps, more only replace them. */
const REFLECTORS = 8
/** Of one reflector: by IPv4 and by IPv6. */
const HOSTS = 2

export interface Endpoint {
  host: string
  port: number
}

/** A port of the router that leads to this node, by a protocol that both speak. */
export interface PortForwarding {
  protocol: 'pcp' | 'nat-pmp' | 'upnp'
  router: string
  /** That this node listens on. */
  port: number
  /** As the router says; null when it does not say. */
  outside: Endpoint | null
}

/** Whether one inside port keeps one outside port towards everybody (RFC 4787 §4.1); then the port can be told to others. */
export type NatMapping = 'independent' | 'dependent'
/** From whom packets are let in to a mapped port (RFC 4787 §5): anybody, hosts or host and port that were sent to. */
export type NatFiltering = 'independent' | 'address' | 'address-and-port'

export type NatType =
  | 'unknown'
  | 'open'
  | 'full-cone'
  | 'restricted-cone'
  | 'port-restricted-cone'
  | 'symmetric'
  | 'udp-blocked'
  | 'web-only'

export interface NatReport {
  type: NatType
  /** Undefined: no UDP, or no TCP but to web ports, comes through. */
  udp: { outside: Endpoint; mapping: NatMapping; filtering: NatFiltering } | undefined
  tcp: { outside: Endpoint; mapping: NatMapping } | undefined
}

export const UNKNOWN_NAT: NatReport = { type: 'unknown', udp: undefined, tcp: undefined }

/** A peer that tells where packets come from, on the same ports by UDP and TCP. */
export interface Reflector {
  peer: string
  host: string
  ports: number[]
}

/** Needs sockets, so that a browser has none. Rejects when no reflector answers at all. */
export type NatProbe = (reflectors: readonly Reflector[], signal: AbortSignal) => Promise<NatReport>

export interface NatWatch {
  report(): NatReport
  /** Looks now, if there is somebody to ask. Never rejects. */
  renew(): Promise<NatReport>
  reflectors(): Reflector[]
  /** Asks a neighbour whether it reflects; at `hosts` it is seen or listens, of IPv4 and IPv6. */
  meet(peer: string, hosts: readonly string[]): void
  /** Something about the network has changed. */
  refresh(): void
  stop(): void
}

export interface NatWatchOptions {
  rpc: PeerRpc
  probe: NatProbe | undefined
  /** Reflectors are sought without a probe too: WebRTC has its own. */
  needsReflectors: boolean
  /** Where this node reflects; empty: it does not. */
  ports: readonly number[]
  clock: Clock
  logger: Logger
}

const replySchema = z.strictObject({ ports: z.array(z.int().min(1).max(65_535)).max(4) })

export function createNatWatch(options: NatWatchOptions): NatWatch {
  const { rpc, probe, needsReflectors, clock, logger } = options
  const stopping = new AbortController()
  /** By peer: however often one changes its addresses, it takes the place of one. */
  const reflectors = new Map<string, Reflector[]>()
  let report = UNKNOWN_NAT
  let dueAt = Number.POSITIVE_INFINITY

  const removeHandler = rpc.handle(METHOD, async () => encodeCbor({ ports: [...options.ports] }))

  async function meet(peer: string, hosts: readonly string[]): Promise<void> {
    const reply = await rpc.call(peer, METHOD, new Uint8Array(), {
      signal: stopping.signal,
      deadlineMs: DEADLINES.rpcMs,
    })
    const { ports } = parseMessage(replySchema, reply, 'reflector', MESSAGE_BYTES)
    if (ports.length === 0) return
    const isFirst = reflectors.size === 0
    reflectors.delete(peer)
    reflectors.set(
      peer,
      hosts.slice(0, HOSTS).map((host) => ({ peer, host, ports })),
    )
    const [oldest] = reflectors.keys()
    if (reflectors.size > REFLECTORS && oldest !== undefined) reflectors.delete(oldest)
    if (isFirst || report === UNKNOWN_NAT) dueAt = clock.now()
  }

  async function look(ask: NatProbe): Promise<void> {
    dueAt = clock.now() + REPORT_MS
    try {
      const limit = clock.deadline(DEADLINES.natProbeMs, 'probing the NAT', stopping.signal)
      const next = await ask(newest(reflectors), limit)
      if (next.type !== report.type) logger.info('nat_type', { type: next.type })
      report = next
    } catch (thrown) {
      logger.debug('nat_probe_failed', { message: messageOf(thrown) })
    }
  }

  async function run(ask: NatProbe): Promise<void> {
    for (;;) {
      await clock.sleep(TICK_MS, stopping.signal)
      if (clock.now() >= dueAt && reflectors.size > 0) await look(ask)
    }
  }

  if (probe !== undefined) {
    run(probe).catch((thrown: unknown) => {
      if (!stopping.signal.aborted) logger.error('nat_watch_failed', { message: messageOf(thrown) })
    })
  }

  return {
    report: () => report,
    async renew() {
      if (probe !== undefined && reflectors.size > 0) await look(probe)
      return report
    },
    reflectors: () => newest(reflectors),
    meet(peer, hosts) {
      if (!needsReflectors || hosts.length === 0 || stopping.signal.aborted) return
      meet(peer, hosts).catch((thrown: unknown) => {
        logger.debug('no_reflector', { peer, message: messageOf(thrown) })
      })
    },
    refresh() {
      dueAt = Math.min(dueAt, clock.now())
    },
    stop() {
      stopping.abort()
      removeHandler()
    },
  }
}

function newest(reflectors: ReadonlyMap<string, readonly Reflector[]>): Reflector[] {
  return [...reflectors.values()].toReversed().flat()
}
