/**
 * Whether others can dial this node. The one proof is a connection that came in unaided: through no relay and no hole that
 * was punched for it. To get one, a node asks its neighbours to dial back (`dial-back.ts`), and believes what they claim
 * about where they reached it as far as that is borne out (`dial-back-claims.ts`).
 *
 * What comes from a private address proves that the neighbours on the LAN can, which is all there is to know while this
 * node has no connection to the internet, and nothing otherwise. A proof is renewed; a node that neighbours in turn, of
 * several networks where there are several, could not dial has lost it.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { messageOf } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Random } from '../random.ts'
import { hostOf, isGlobal, isIp6, isRelayed, portOf, transportOf } from './addresses.ts'
import { candidates, claimOf, isProof } from './dial-back-claims.ts'
import type { ClaimOptions } from './dial-back-claims.ts'
import { serveDialBack } from './dial-back.ts'
import type { DialBackOutcome } from './dial-back.ts'
import type { PortForwarding } from './nat.ts'
import type { Offences } from './offences.ts'
import { createSightings } from './sightings.ts'
import type { Sighting, Sightings } from './sightings.ts'

const TICK_MS = 1_000
/** A proof of this age is renewed; without an answer it stands. */
const RENEW_MS = 120_000
/** Without a proof the neighbours are asked again after this long, doubled each time: a port may have been opened. */
const RETRY_FIRST_MS = 15_000
const RETRY_MAX_MS = 300_000
/** Neighbours that could not dial back, in a row, before a proof is void. */
const REFUTATIONS = 2
/** Neighbours asked at once. */
const ASKED = 3
/** All ports that are checked, whoever does not answer. */
const CHECK_MS = 25_000

export interface ReachabilityOptions extends Omit<ClaimOptions, 'sightings'> {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener' | 'getConnections' | 'dial'>
  random: Random
  offences: Pick<Offences, 'note'>
  /** Called with an address that was reached: from now on it is announced; and with one that no longer is. */
  onReached: (address: Multiaddr) => void
  onLost: (address: Multiaddr) => void
  onChange: (isPublic: boolean) => void
}

export interface Reachability {
  /** By everybody, that is: some have no IPv6. */
  isPublicByIp4(): boolean
  /** `mapped`: dialled under an address that is not of this machine. Undefined while not proven. */
  verdict(): 'public' | 'mapped' | undefined
  /** Asks a neighbour to dial back, unless that is known. */
  ask(peer: string, sighting?: Sighting): void
  /** IPs at which neighbours see this node; those on the internet say what others can use. */
  seenAt(): string[]
  /** Of these, where most see it: who is seen there too may be on the same LAN. */
  outsideHosts(): string[]
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

export function createReachability(options: ReachabilityOptions): Reachability {
  const { libp2p, rpc, clock, logger } = options
  const stopping = new AbortController()
  const sightings = createSightings()
  const context = { ...options, sightings }
  const proofs = createProofs(context)
  const onOpen = ({ detail }: CustomEvent<Connection>): void => proofs.onOpen(detail)
  const onClose = ({ detail: { remotePeer } }: CustomEvent<Connection>): void => {
    if (libp2p.getConnections(remotePeer).length === 0) sightings.forget(remotePeer.toString())
    proofs.update()
  }
  libp2p.addEventListener('connection:open', onOpen)
  libp2p.addEventListener('connection:close', onClose)
  const stopServing = serveDialBack(rpc, libp2p, clock, options.offences)
  const asked = new Set<string>()
  const ask = async (peer: string): Promise<void> => {
    if (asked.has(peer)) return
    asked.add(peer)
    const addresses = candidates(options, sightings.of(peer)?.seen)
    const outcome = await claimOf(peer, addresses, context, stopping.signal)
    asked.delete(peer)
    if (!stopping.signal.aborted) proofs.note(outcome, peer)
  }
  const askSome = async (): Promise<void> => {
    const peers = sightings.peers()
    const chosen = Array.from({ length: Math.min(ASKED, peers.length) }, () =>
      peers.splice(options.random.integer(peers.length), 1),
    )
    await Promise.all(chosen.flat().map(ask))
  }
  renew(proofs, askSome, options, stopping.signal).catch((thrown: unknown) => {
    if (!stopping.signal.aborted)
      logger.error('reachability_failed', { message: messageOf(thrown) })
  })
  return {
    isPublicByIp4: () => proofs.isPublicByIp4(),
    verdict: () => (proofs.isPublic() ? kindOf(options, proofs.reached()) : undefined),
    ask(peer, sighting) {
      if (stopping.signal.aborted) return
      if (sighting !== undefined && !isRelayed(sighting.seen)) sightings.note(peer, sighting)
      if (!proofs.isPublic() && sightings.of(peer) !== undefined) void ask(peer)
    },
    seenAt: () => sightings.hosts(),
    outsideHosts: () => sightings.likelyHosts(),
    recheck: () => void askSome(),
    check: (signal) => checkPorts(context, proofs, AbortSignal.any([signal, stopping.signal])),
    stop() {
      stopping.abort()
      stopServing()
      libp2p.removeEventListener('connection:open', onOpen)
      libp2p.removeEventListener('connection:close', onClose)
    },
  }
}

interface Context extends ReachabilityOptions {
  sightings: Sightings
}

interface Proofs {
  isPublic(): boolean
  isPublicByIp4(): boolean
  /** Addresses under which neighbours have reached this node. */
  reached(): Multiaddr[]
  /** Whether it is time to ask again, although there is a proof. */
  isDoubtful(): boolean
  onOpen(connection: Connection): void
  note(outcome: DialBackOutcome, peer: string): void
  /** A connection that comes or goes may change what a proof is worth. */
  update(): void
}

function createProofs(context: Context): Proofs {
  const { libp2p, clock, logger, sightings } = context
  const reached = new Map<string, Multiaddr>()
  /** Whether by IPv6, of those who came in from the internet. */
  const cameIn = new Set<boolean>()
  let provenAt: number | undefined
  const doubts = createDoubts(sightings)
  let wasPublic = false

  /** Dialled from the internet, and known where: under an address of its own, or one that was reached. */
  const isKnown = (families: readonly boolean[]): boolean => {
    const ways = families.filter((family) => cameIn.has(family))
    const addresses = [...context.listenAddresses(), ...reached.values()]
    return addresses.some((address) =>
      hostOf(address) === undefined
        ? ways.length > 0
        : isGlobal(address) && ways.includes(isIp6(address)),
    )
  }
  const isProven = (families: readonly boolean[]): boolean =>
    provenAt !== undefined && (isIsolated(libp2p) || isKnown(families))
  const isPublic = (): boolean => isProven([false, true])

  function update(): void {
    if (isPublic() === wasPublic) return
    wasPublic = isPublic()
    logger.info(wasPublic ? 'network_reachable' : 'network_unreachable')
    context.onChange(wasPublic)
  }

  function lose(): void {
    doubts.clear()
    provenAt = undefined
    cameIn.clear()
    for (const address of reached.values()) context.onLost(address)
    reached.clear()
    update()
  }

  return {
    isPublic,
    isPublicByIp4: () => isProven([false]),
    update,
    reached: () => [...reached.values()],
    isDoubtful: () => clock.now() - (provenAt ?? 0) >= RENEW_MS || doubts.any(),
    onOpen(connection) {
      const { remoteAddr } = connection
      if (isProof(connection, context)) {
        if (isGlobal(remoteAddr)) cameIn.add(isIp6(remoteAddr))
        if (isGlobal(remoteAddr) || cameIn.size === 0) {
          provenAt = clock.now()
          doubts.clear()
        }
      }
      update()
    },
    note(outcome, peer) {
      const isDenied = outcome.kind === 'unreachable' && provenAt !== undefined
      if (isDenied && doubts.areEnough(peer)) lose()
      if (outcome.kind !== 'reached') return
      doubts.clear()
      if (provenAt !== undefined) provenAt = clock.now()
      reached.set(outcome.address.toString(), outcome.address)
      context.onReached(outcome.address)
      const [oldest] = reached
      if (reached.size > LIMITS.peerAddresses && oldest !== undefined) {
        reached.delete(oldest[0])
        context.onLost(oldest[1])
      }
      update()
    },
  }
}

interface Doubts {
  /** Counts that this neighbour could not dial back: true when a proof is void. */
  areEnough(peer: string): boolean
  any(): boolean
  clear(): void
}

/** One network alone can take a proof away only where there is no other to ask. */
function createDoubts(sightings: Sightings): Doubts {
  const networks = new Set<string>()
  let count = 0
  return {
    areEnough(peer) {
      count++
      networks.add(sightings.networkOf(peer) ?? '')
      const needed = Math.min(REFUTATIONS, sightings.networks().size)
      return count >= REFUTATIONS && networks.size >= needed
    },
    any: () => count > 0,
    clear() {
      count = 0
      networks.clear()
    },
  }
}

/**
 * Looks for a proof while there is none, ever more rarely, and renews the one that there is; at once when the router
 * forwards another port.
 */
async function renew(
  proofs: Proofs,
  askSome: () => Promise<void>,
  { clock, forwarding }: ReachabilityOptions,
  stopping: AbortSignal,
): Promise<void> {
  let retry = { at: clock.now() + RETRY_FIRST_MS, ms: RETRY_FIRST_MS }
  let forwarded = forwarding()
  for (;;) {
    await clock.sleep(TICK_MS, stopping)
    const isNew = !isSameForwarding(forwarding(), forwarded)
    forwarded = forwarding()
    const isDue = clock.now() >= retry.at && (!proofs.isPublic() || proofs.isDoubtful())
    if (!isDue && !isNew) continue
    const startedAt = clock.now()
    await askSome()
    const ms = proofs.isPublic() ? RETRY_FIRST_MS : Math.min(2 * retry.ms, RETRY_MAX_MS)
    retry = { at: startedAt + ms, ms }
  }
}

function isSameForwarding(a: PortForwarding | undefined, b: PortForwarding | undefined): boolean {
  return a?.outside?.host === b?.outside?.host && a?.outside?.port === b?.outside?.port
}

/** Each port by itself; what was reached before counts while no neighbour can try. */
async function checkPorts(
  context: Context,
  proofs: Proofs,
  signal: AbortSignal,
): Promise<ListenCheck[]> {
  const limit = context.clock.deadline(CHECK_MS, 'checking the ports', signal)
  const own = candidates(context, undefined).filter((address) => portOf(address) !== undefined)
  const nameOfOwn = (address: Multiaddr): string => nameOf(address, context)
  const ports = [...new Set(own.map(nameOfOwn))].map(async (name, index) => {
    // Each port begins with another neighbour: one of them dials back twice a minute only.
    const all = context.sightings.peers()
    const first = index % Math.max(1, all.length)
    const asked = [...all.slice(first), ...all.slice(0, first)].slice(0, ASKED)
    const { outcome, peer } = await dialBackOf(name, asked, context, limit)
    if (outcome.kind === 'reached') proofs.note(outcome, peer)
    const reached = proofs.reached().find((address) => nameOfOwn(address) === name)
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

/** By the port that is listened on here, whichever the router forwards to it. */
function nameOf(address: Multiaddr, { forwarding }: ReachabilityOptions): string {
  const { outside, port } = forwarding() ?? {}
  const isForwarded = outside?.host === hostOf(address) && outside?.port === portOf(address)
  return `${isForwarded ? port : portOf(address)}/${transportOf(address)}`
}

/** The answer of the first neighbour that could try the port of this name. */
async function dialBackOf(
  name: string,
  asked: readonly string[],
  context: Context,
  signal: AbortSignal,
): Promise<{ outcome: DialBackOutcome; peer: string }> {
  for (const peer of asked) {
    const addresses = candidates(context, context.sightings.of(peer)?.seen)
    const ofPort = addresses.filter((address) => nameOf(address, context) === name)
    const outcome = await claimOf(peer, ofPort, context, signal)
    if (outcome.kind !== 'unknown') return { outcome, peer }
  }
  return { outcome: { kind: 'unknown' }, peer: '' }
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
