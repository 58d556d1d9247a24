/**
 * Whether others can dial this node. The one proof is a connection that came in unaided: through no relay and no hole that
 * was punched for it. To get one, a node asks its neighbours to dial back (`dial-back.ts`).
 *
 * What comes from a private address proves that the neighbours on the LAN can, which is all there is to know while this
 * node has no connection to the internet, and nothing otherwise. A proof is renewed; a node that several neighbours in
 * turn could not dial has lost it.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Random } from '../random.ts'
import {
  hostOf,
  isGlobal,
  isGlobalHost,
  isRelayed,
  isUnaided,
  portOf,
  transportOf,
  withHost,
} from './addresses.ts'
import { askDialBack, serveDialBack } from './dial-back.ts'
import type { DialBackOutcome } from './dial-back.ts'
import type { PeerRpc } from './network.ts'
import type { Offences } from './offences.ts'

const TICK_MS = 5_000
/** A proof of this age is renewed; without an answer it stands. */
const RENEW_MS = 120_000
/** Without a proof the neighbours are asked again after this long, doubled each time: a port may have been opened. */
const RETRY_FIRST_MS = 15_000
const RETRY_MAX_MS = 300_000
/** Neighbours that could not dial back, in a row, before a proof is void. */
const REFUTATIONS = 2
/** Neighbours asked at once. */
const ASKED = 3
/** The answer of a neighbour that has dialled may be here before its handshake is over. */
const ARRIVAL_MS = 1_000
/** All ports that are checked, whoever does not answer. */
const CHECK_MS = 25_000

export interface ReachabilityOptions {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener' | 'getConnections' | 'dial'>
  rpc: PeerRpc
  clock: Clock
  random: Random
  logger: Logger
  offences: Pick<Offences, 'note'>
  /** All addresses this node listens on, announced or not. */
  listenAddresses: () => Multiaddr[]
  /** Called with an address that was reached: from now on it is announced; and with one that no longer is. */
  onReached: (address: Multiaddr) => void
  onLost: (address: Multiaddr) => void
  onChange: (isPublic: boolean) => void
  /** Whether a connection goes through a hole that both sides made. */
  isPunched: (connection: Connection) => boolean
}

export interface Reachability {
  isPublic(): boolean
  /** `mapped`: dialled under an address that is not of this machine. Undefined while not proven. */
  verdict(): 'public' | 'mapped' | undefined
  /** Asks a neighbour to dial back, unless that is known. `observed`: where the neighbour sees this node. */
  ask(peer: string, observed?: Multiaddr): void
  /** IPs at which neighbours see this node; those on the internet say what others can use. */
  seenAt(): string[]
  /** Something about the network has changed: proofs are made again. */
  recheck(): void
  /** Has neighbours dial each port by itself. Never rejects: what is not known when the signal fires stays so. */
  check(signal: AbortSignal): Promise<ListenCheck[]>
  stop(): void
}

/** A port that this node listens on. */
export interface ListenCheck {
  transport: string
  port: number
  /** Null when no neighbour could try. */
  isReached: boolean | null
  /** Where it was reached. */
  address: string | null
}

interface Proof {
  at: number
  /** By a neighbour on the internet, or by one on the LAN. */
  isGlobal: boolean
}

export function createReachability(options: ReachabilityOptions): Reachability {
  const { libp2p, rpc, clock, logger } = options
  const stopping = new AbortController()
  const proofs = createProofs(options)
  /** Where each neighbour sees this node. */
  const observed = new Map<string, Multiaddr>()
  const onOpen = ({ detail }: CustomEvent<Connection>): void => proofs.onOpen(detail)
  const onClose = ({ detail: { remotePeer } }: CustomEvent<Connection>): void => {
    if (libp2p.getConnections(remotePeer).length === 0) observed.delete(remotePeer.toString())
    proofs.update()
  }
  libp2p.addEventListener('connection:open', onOpen)
  libp2p.addEventListener('connection:close', onClose)
  const stopServing = serveDialBack(rpc, libp2p, clock, options.offences)
  const asked = new Set<string>()
  const ask = async (peer: string): Promise<void> => {
    if (asked.has(peer)) return
    const addresses = candidates(options, observed.get(peer))
    asked.add(peer)
    const outcome = await dialBackBy(peer, addresses, options, stopping.signal)
    asked.delete(peer)
    if (!stopping.signal.aborted) proofs.note(outcome)
  }
  const askSome = async (): Promise<void> => {
    const peers = [...observed.keys()]
    const chosen = Array.from({ length: Math.min(ASKED, peers.length) }, () =>
      peers.splice(options.random.integer(peers.length), 1),
    )
    await Promise.all(chosen.flat().map(ask))
  }
  renew(proofs, askSome, clock, stopping.signal).catch((thrown: unknown) => {
    if (!stopping.signal.aborted)
      logger.error('reachability_failed', { message: messageOf(thrown) })
  })
  return {
    isPublic: () => proofs.isPublic(),
    verdict: () => (proofs.isPublic() ? kindOf(options, proofs.reached()) : undefined),
    ask(peer, seen) {
      if (stopping.signal.aborted) return
      if (seen !== undefined && !isRelayed(seen)) observed.set(peer, seen)
      if (!proofs.isPublic() && observed.has(peer)) void ask(peer)
    },
    seenAt: () => hostsOf(observed.values()),
    recheck: () => void askSome(),
    check: (signal) =>
      checkPorts(options, observed, proofs, AbortSignal.any([signal, stopping.signal])),
    stop() {
      stopping.abort()
      stopServing()
      libp2p.removeEventListener('connection:open', onOpen)
      libp2p.removeEventListener('connection:close', onClose)
    },
  }
}

interface Proofs {
  isPublic(): boolean
  /** Addresses under which neighbours have reached this node. */
  reached(): Multiaddr[]
  /** Whether it is time to ask again, although there is a proof. */
  isDoubtful(): boolean
  onOpen(connection: Connection): void
  note(outcome: DialBackOutcome): void
  /** A connection that comes or goes may change what a proof is worth. */
  update(): void
}

function createProofs(options: ReachabilityOptions): Proofs {
  const { libp2p, clock, logger } = options
  const reached = new Map<string, Multiaddr>()
  let proof: Proof | undefined
  let refutations = 0
  let wasPublic = false
  const isPublic = (): boolean => proof !== undefined && (proof.isGlobal || isIsolated(libp2p))

  function update(): void {
    if (isPublic() === wasPublic) return
    wasPublic = isPublic()
    logger.info(wasPublic ? 'network_reachable' : 'network_unreachable')
    options.onChange(wasPublic)
  }

  function refute(): void {
    refutations++
    if (refutations < REFUTATIONS) return
    proof = undefined
    for (const address of reached.values()) options.onLost(address)
    reached.clear()
    update()
  }

  return {
    isPublic,
    update,
    reached: () => [...reached.values()],
    isDoubtful: () => clock.now() - (proof?.at ?? 0) >= RENEW_MS || refutations > 0,
    onOpen(connection) {
      const { remoteAddr } = connection
      if (isProof(connection, options)) {
        const isFromGlobal = isGlobal(remoteAddr)
        if (isFromGlobal || proof?.isGlobal !== true) {
          proof = { at: clock.now(), isGlobal: isFromGlobal }
          refutations = 0
        }
      }
      update()
    },
    note(outcome) {
      if (outcome.kind === 'unreachable' && proof !== undefined) refute()
      if (outcome.kind !== 'reached') return
      refutations = 0
      if (proof !== undefined) proof.at = clock.now()
      reached.set(outcome.address.toString(), outcome.address)
      options.onReached(outcome.address)
      const [oldest] = reached
      if (reached.size <= LIMITS.peerAddresses || oldest === undefined) return
      reached.delete(oldest[0])
      options.onLost(oldest[1])
    },
  }
}

/** Came in through no relay, and no hole that was punched for it. */
function isProof(
  connection: Connection,
  { isPunched }: Pick<ReachabilityOptions, 'isPunched'>,
): boolean {
  const { direction, remoteAddr } = connection
  return direction === 'inbound' && isUnaided(remoteAddr) && !isPunched(connection)
}

/** As `askDialBack`; a neighbour that claims to have reached this node is believed when it has come in meanwhile. */
async function dialBackBy(
  peer: string,
  addresses: readonly Multiaddr[],
  options: ReachabilityOptions,
  signal: AbortSignal,
): Promise<DialBackOutcome> {
  const { libp2p, rpc, clock } = options
  const arrived = new AbortController()
  const onOpen = ({ detail }: CustomEvent<Connection>): void => {
    if (detail.remotePeer.toString() === peer && isProof(detail, options)) arrived.abort()
  }
  libp2p.addEventListener('connection:open', onOpen)
  try {
    const outcome = await askDialBack(rpc, peer, addresses, signal)
    if (outcome.kind !== 'reached') return outcome
    const either = AbortSignal.any([signal, arrived.signal])
    await clock.sleep(ARRIVAL_MS, either).catch(() => {})
    return arrived.signal.aborted ? outcome : { kind: 'unknown' }
  } finally {
    libp2p.removeEventListener('connection:open', onOpen)
  }
}

/** Looks for a proof while there is none, ever more rarely, and renews the one that there is. */
async function renew(
  proofs: Proofs,
  askSome: () => Promise<void>,
  clock: Clock,
  stopping: AbortSignal,
): Promise<void> {
  let retry = { at: clock.now() + RETRY_FIRST_MS, ms: RETRY_FIRST_MS }
  for (;;) {
    await clock.sleep(TICK_MS, stopping)
    if (clock.now() < retry.at || (proofs.isPublic() && !proofs.isDoubtful())) continue
    const startedAt = clock.now()
    await askSome()
    const ms = proofs.isPublic() ? RETRY_FIRST_MS : Math.min(2 * retry.ms, RETRY_MAX_MS)
    retry = { at: startedAt + ms, ms }
  }
}

/** Where this node may be dialled, for a neighbour that sees it at `seen`. */
function candidates(
  { listenAddresses }: ReachabilityOptions,
  seen: Multiaddr | undefined,
): Multiaddr[] {
  const own = listenAddresses().filter((address) => hostOf(address) !== undefined)
  const host = seen && hostOf(seen)
  // Where a router forwards the port, it is most often the same outside.
  const mapped = host === undefined ? [] : own.map((address) => withHost(address, host))
  return [...new Map([...own, ...mapped].map((address) => [address.toString(), address])).values()]
}

/** Each port by itself; what was reached before counts while no neighbour can try. */
async function checkPorts(
  options: ReachabilityOptions,
  observed: ReadonlyMap<string, Multiaddr>,
  proofs: Proofs,
  signal: AbortSignal,
): Promise<ListenCheck[]> {
  const limit = options.clock.deadline(CHECK_MS, 'checking the ports', signal)
  const own = candidates(options, undefined).filter((address) => portOf(address) !== undefined)
  const ports = [...new Set(own.map(nameOf))].map(async (name, index) => {
    // Each port begins with another neighbour: one of them dials back twice a minute only.
    const all = [...observed]
    const first = index % Math.max(1, all.length)
    const asked = [...all.slice(first), ...all.slice(0, first)].slice(0, ASKED)
    const outcome = await dialBackOf(name, asked, options, limit)
    if (outcome.kind === 'reached') proofs.note(outcome)
    const reached = proofs.reached().find((address) => nameOf(address) === name)
    const [port = '', transport = ''] = name.split('/')
    return {
      transport,
      port: Number(port),
      isReached: reached !== undefined && outcome.kind !== 'unreachable' ? true : refuted(outcome),
      address: outcome.kind === 'unreachable' ? null : (reached?.toString() ?? null),
    }
  })
  return await Promise.all(ports)
}

function refuted({ kind }: DialBackOutcome): false | null {
  return kind === 'unreachable' ? false : null
}

function nameOf(address: Multiaddr): string {
  return `${portOf(address)}/${transportOf(address)}`
}

/** The answer of the first neighbour that could try the port of this name. */
async function dialBackOf(
  name: string,
  asked: readonly (readonly [peer: string, seen: Multiaddr])[],
  options: ReachabilityOptions,
  signal: AbortSignal,
): Promise<DialBackOutcome> {
  for (const [peer, seen] of asked) {
    const addresses = candidates(options, seen).filter((address) => nameOf(address) === name)
    const outcome = await dialBackBy(peer, addresses, options, signal)
    if (outcome.kind !== 'unknown') return outcome
  }
  return { kind: 'unknown' }
}

/** Those on the internet say what others can use. */
function hostsOf(observed: Iterable<Multiaddr>): string[] {
  const hosts = [...observed].map((address) => hostOf(address) ?? '')
  const outside = hosts.filter((host) => isGlobalHost(host))
  return [...new Set(outside.length > 0 ? outside : hosts)].filter((host) => host !== '')
}

/** No connection to the internet: then what the LAN says counts. */
function isIsolated(libp2p: ReachabilityOptions['libp2p']): boolean {
  return !libp2p.getConnections().some(({ remoteAddr }) => isGlobal(remoteAddr))
}

function kindOf(
  { listenAddresses }: ReachabilityOptions,
  reached: readonly Multiaddr[],
): 'public' | 'mapped' {
  const own = new Set(listenAddresses().map((address) => hostOf(address)))
  const isOwn = (address: Multiaddr): boolean => own.has(hostOf(address))
  return reached.length === 0 || reached.some(isOwn) ? 'public' : 'mapped'
}
