/**
 * Turns relayed links into direct ones, in place: the relayed link works on until a direct one is up.
 *
 * The side that made the relayed connection tries in turn, cheapest first: to dial (on the LAN, if both are behind one
 * public address; else any address that leads straight to the peer), to be dialled, to punch a hole for TCP, for UDP, and
 * WebRTC (`webrtc-paths.ts`), which is all that a browser can do.
 * What fails is tried again, ever more rarely. What it takes from the other side is asked for by peer RPC, so that both
 * agree and know each other; a peer may ask rarely, and for little (`punch-answers.ts`).
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { Random } from '../random.ts'
import { encodeCbor } from '../store/content.ts'
import {
  hostOf,
  isGlobal,
  isRelayed,
  isUnaided,
  peerOf,
  rangeOf,
  transportOf,
} from './addresses.ts'
import type { Upgrade } from './libp2p-node.ts'
import type { NatReport, NatWatch } from './nat.ts'
import type { PeerRpc } from './network.ts'
import type { Offences } from './offences.ts'
import {
  DESCRIBE_METHOD,
  descriptionSchema,
  DIAL_METHOD,
  dialReplySchema,
  GO_METHOD,
  parsePath,
  PUNCH_METHOD,
  punchReplySchema,
  TOKEN_BYTES,
} from './punch-messages.ts'
import type { Description } from './punch-messages.ts'
import { mayPunch, shareLan } from './punch.ts'
import type { Puncher } from './punch.ts'
import { dialByWebRtc } from './webrtc-paths.ts'
import type { WebRtc } from './webrtc.ts'

const TICK_MS = 250
/** Peers that a direct path is sought to at once. */
const AT_ONCE = 4
/** After a failure, doubled each time. */
const RETRY_FIRST_MS = 10_000
const RETRY_MAX_MS = 600_000
/** The called side tries too when the caller has not for this long: it may not know how. */
const PATIENCE_MS = 15_000
/** Dialling addresses that do not answer soon is not worth the wait while there are other ways. */
const DIAL_MS = 5_000

export interface DirectPathsOptions {
  self: string
  /** Serves the other side of reversed dials and punches; returns the function that ends it. */
  answer: (context: PathContext) => () => void
  libp2p: Pick<
    Libp2p,
    'getConnections' | 'dial' | 'addEventListener' | 'removeEventListener' | 'getPeers'
  >
  rpc: PeerRpc
  upgrade: Upgrade
  nat: Pick<NatWatch, 'reflectors' | 'report'>
  punchers: readonly Puncher[]
  webRtc: WebRtc | undefined
  /** Connected Shoal peers. */
  peers: () => readonly string[]
  /** Addresses of this node, and IPs from which neighbours see it. */
  addresses: () => readonly Multiaddr[]
  outsideHosts: () => readonly string[]
  openedAt: (connection: Connection) => number
  clock: Clock
  random: Random
  logger: Logger
  metrics: Metrics
  offences: Pick<Offences, 'note'>
}

export interface DirectPaths {
  /** Whether a connection goes through a punched hole: it is no proof that this node can be dialled. */
  isPunched(connection: Connection): boolean
  /** The network has changed: what failed before may work now. */
  retry(): void
  stop(): void
}

interface Attempt {
  isRunning: boolean
  failures: number
  nextAt: number
}

/** What is shared by both sides of the search. */
export interface PathContext extends DirectPathsOptions {
  /** Remote addresses of punched connections. */
  punched: Set<string>
  signal: AbortSignal
  describe(): Description
}

export function createDirectPaths(options: DirectPathsOptions): DirectPaths {
  const { clock, logger } = options
  const stopping = new AbortController()
  const attempts = new Map<string, Attempt>()
  const punched = new Set<string>()
  const context: PathContext = {
    ...options,
    punched,
    signal: stopping.signal,
    describe: () => describe(options),
  }
  const stopServing = options.answer(context)

  const onClose = ({ detail }: CustomEvent<Connection>): void => {
    punched.delete(detail.remoteAddr.toString())
  }
  options.libp2p.addEventListener('connection:close', onClose)

  async function run(): Promise<void> {
    for (;;) {
      await clock.sleep(TICK_MS, stopping.signal)
      const known = new Set(options.peers())
      for (const peer of attempts.keys()) if (!known.has(peer)) attempts.delete(peer)
      for (const peer of known) startAttempt(peer)
    }
  }

  function startAttempt(peer: string): void {
    const running = [...attempts.values()].filter(({ isRunning }) => isRunning).length
    const attempt = attempts.get(peer) ?? { isRunning: false, failures: 0, nextAt: 0 }
    if (attempt.isRunning || running >= AT_ONCE || attempt.nextAt > clock.now()) return
    if (!isOwnTask(peer, options)) return
    attempts.set(peer, { ...attempt, isRunning: true })
    void pursue(peer, attempt.failures)
  }

  async function pursue(peer: string, failuresBefore: number): Promise<void> {
    const isFound = await seek(peer, context)
    if (!attempts.has(peer)) return
    const failures = isFound ? 0 : failuresBefore + 1
    const waitMs = Math.min(RETRY_FIRST_MS * 2 ** Math.max(0, failures - 1), RETRY_MAX_MS)
    attempts.set(peer, { isRunning: false, failures, nextAt: clock.now() + waitMs })
  }

  run().catch((thrown: unknown) => {
    if (!stopping.signal.aborted)
      logger.error('direct_paths_failed', { message: messageOf(thrown) })
  })

  return {
    isPunched: ({ remoteAddr }) => punched.has(remoteAddr.toString()),
    retry() {
      for (const attempt of attempts.values()) attempt.nextAt = 0
    },
    stop() {
      stopping.abort(new ShoalError('aborted', 'the node is stopping'))
      stopServing()
      options.libp2p.removeEventListener('connection:close', onClose)
    },
  }
}

/**
 * There are only relayed connections to the peer, and this side made one (of two sides that did, the one with the smaller
 * id), or the other side does nothing about it.
 */
function isOwnTask(peer: string, { libp2p, self, openedAt, clock }: DirectPathsOptions): boolean {
  const open = libp2p
    .getConnections(peerIdFromString(peer))
    .filter(({ status }) => status === 'open')
  if (open.length === 0 || open.some(({ remoteAddr }) => !isRelayed(remoteAddr))) return false
  const isCaller = open.some(({ direction }) => direction === 'outbound')
  const isCalled = open.some(({ direction }) => direction === 'inbound')
  if (isCaller && (!isCalled || self < peer)) return true
  return open.every((connection) => clock.now() - openedAt(connection) > PATIENCE_MS)
}

export function hasDirect(peer: string, { libp2p }: Pick<DirectPathsOptions, 'libp2p'>): boolean {
  return libp2p
    .getConnections(peerIdFromString(peer))
    .some(({ status, remoteAddr }) => status === 'open' && !isRelayed(remoteAddr))
}

function describe(options: DirectPathsOptions): Description {
  const { addresses, outsideHosts, punchers, webRtc, nat } = options
  const report = nat.report()
  const isUdpOut = report.type === 'unknown' || report.udp !== undefined
  return {
    addresses: addresses()
      .filter((address) => isUnaided(address) && hostOf(address) !== undefined)
      .map((address) => address.toString())
      .slice(0, 16),
    hosts: outsideHosts().slice(0, 4),
    kinds: [
      ...possible(punchers, report).map(({ kind }) => kind),
      ...(webRtc !== undefined && isUdpOut ? (['webrtc'] as const) : []),
    ],
  }
}

/** Without those that this node's own NAT is known to make hopeless. */
function possible(punchers: readonly Puncher[], { type, tcp, udp }: NatReport): Puncher[] {
  if (type === 'unknown') return [...punchers]
  return punchers.filter(({ kind }) =>
    kind === 'tcp' ? tcp?.mapping === 'independent' : udp !== undefined,
  )
}

/** Whether a direct path was found. Never rejects. */
async function seek(peer: string, context: PathContext): Promise<boolean> {
  const { rpc, clock, logger, metrics, signal } = context
  const startedMs = clock.now()
  try {
    const own = context.describe()
    const askedMs = clock.now()
    const reply = await rpc.call(peer, DESCRIBE_METHOD, encodeCbor(own), { signal })
    const rttMs = clock.now() - askedMs
    const theirs = parsePath(descriptionSchema, reply)
    const ways: [string, () => Promise<void>][] = [
      ['dial', () => dialPeer(peer, dialable(peer, theirs, own.hosts), context)],
      ['reverse', () => askToDial(peer, own, context)],
      ...context.punchers
        .filter(({ kind }) => own.kinds.includes(kind) && theirs.kinds.includes(kind))
        .map((puncher): [string, () => Promise<void>] => [
          puncher.kind,
          () => punch(peer, puncher, rttMs, context),
        ]),
    ]
    if (own.kinds.includes('webrtc') && theirs.kinds.includes('webrtc')) {
      ways.push(['webrtc', () => dialByWebRtc(peer, theirs.hosts, context)])
    }
    for (const [way, attempt] of ways) {
      if (!hasDirect(peer, context)) await tryWay(peer, way, attempt, context)
    }
  } catch (thrown) {
    if (signal.aborted) return false
    logger.debug('path_not_described', { peer, message: messageOf(thrown) })
  }
  const isFound = hasDirect(peer, context)
  metrics.add('direct_paths_total', 1, isFound ? 'found' : 'failed')
  if (isFound) logger.info('path_direct', { peer, tookMs: Math.round(clock.now() - startedMs) })
  return isFound
}

async function tryWay(
  peer: string,
  way: string,
  attempt: () => Promise<void>,
  { logger, metrics, signal }: PathContext,
): Promise<void> {
  try {
    await attempt()
  } catch (thrown) {
    if (signal.aborted) throw thrown
    metrics.add('path_failures_total', 1, way)
    logger.debug('path_failed', { peer, way, message: messageOf(thrown) })
  }
}

/** LAN addresses when both are seen at one public address, then those that are of the internet. */
export function dialable(
  peer: string,
  { addresses, hosts }: Pick<Description, 'addresses' | 'hosts'>,
  ownHosts: readonly string[],
): Multiaddr[] {
  const isOneLan = shareLan(hosts, ownHosts)
  const parsed = addresses.flatMap((text) => {
    try {
      const address = multiaddr(text)
      const isTheirs = isUnaided(address) && peerOf(address) === peer && !isLoopback(address)
      return isTheirs && (isGlobal(address) || isOneLan) ? [address] : []
    } catch {
      return []
    }
  })
  return parsed.toSorted((a, b) => Number(isGlobal(a)) - Number(isGlobal(b)))
}

/** Two nodes of one machine have found each other by other means; of another machine it is a wrong address. */
function isLoopback(address: Multiaddr): boolean {
  return rangeOf(hostOf(address) ?? '') === 'loopback'
}

/** In turn, and not for long. */
export async function dialPeer(
  peer: string,
  addresses: readonly Multiaddr[],
  context: PathContext,
): Promise<void> {
  if (addresses.length === 0) return
  const limit = context.clock.deadline(DIAL_MS, 'dialling', context.signal)
  const connection = await context.libp2p.dial([...addresses], { force: true, signal: limit })
  context.logger.debug('path_dialled', { peer, transport: transportOf(connection.remoteAddr) })
}

async function askToDial(
  peer: string,
  { addresses }: Description,
  { rpc, signal }: PathContext,
): Promise<void> {
  const reachable = addresses.filter((text) => isGlobal(multiaddr(text)))
  if (reachable.length === 0) return
  const request = encodeCbor({ addresses: reachable })
  const options = { signal, deadlineMs: DIAL_MS + DEADLINES.rpcMs }
  parsePath(dialReplySchema, await rpc.call(peer, DIAL_METHOD, request, options))
}

async function punch(
  peer: string,
  puncher: Puncher,
  rttMs: number,
  context: PathContext,
): Promise<void> {
  const { rpc, nat, clock, upgrade } = context
  const signal = clock.deadline(DEADLINES.punchMs, 'punching', context.signal)
  const attempt = await puncher.prepare(nat.reflectors(), signal)
  try {
    const token = crypto.getRandomValues(new Uint8Array(TOKEN_BYTES))
    const request = encodeCbor({ kind: puncher.kind, token, offer: attempt.offer })
    const { offer } = parsePath(
      punchReplySchema,
      await rpc.call(peer, PUNCH_METHOD, request, { signal }),
    )
    if (!mayPunch(puncher.kind, attempt.offer.mapping, offer.mapping)) {
      throw new ShoalError('refused', 'both NATs map each destination anew')
    }
    const going = rpc.call(peer, GO_METHOD, encodeCbor({ token }), { signal })
    going.catch(() => {})
    // The other side begins when it hears of it, and this side at the same time.
    await clock.sleep(rttMs / 2, signal)
    const role = { isInitiator: true, token, peer, signal, log: upgrade.log }
    const wire = await attempt.run(offer, role)
    context.punched.add(wire.remoteAddr.toString())
    await upgrade.outbound(wire, signal)
  } finally {
    attempt.close()
  }
}
