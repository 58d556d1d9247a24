/** A connection to a peer, by whatever way leads there. */
import type { Address, Connection, PeerId, PeerInfo } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import {
  hostOf,
  isDirect,
  isGlobal,
  isRelayed,
  parseAddress,
  peerOf,
  relayOf,
} from './addresses.ts'
import type { Libp2pNode } from './libp2p-node.ts'
import { neighbouringRelays } from './relays.ts'

/** Discovered neighbours dialled at once. */
const MEETINGS = 16
/** Neighbouring relays that a peer is sought behind. */
const RELAYS_TRIED = 4
/** For known addresses, before the DHT is asked for others. */
const KNOWN_MS = 6_000
/** An attempt that has taken this long is late: a handshake is 5 round trips. */
const STAGGER_MS = 1_000

export interface PeerDialOptions {
  libp2p: Pick<Libp2pNode, 'getConnections' | 'dial' | 'peerStore' | 'peerRouting' | 'services'>
  /** Waits for the first DHT server to ask. */
  untilServer: (signal: AbortSignal) => Promise<void>
  clock: Clock
}

/**
 * The oldest direct connection first (a dial-back adds one for a moment), then any. Dials when there is none: where the
 * peer was known to be and behind the relays around, then where the DHT says that it is now.
 */
export async function connectionTo(
  peer: string,
  options: PeerDialOptions,
  signal: AbortSignal,
): Promise<Connection> {
  const { libp2p, clock } = options
  const id = peerIdFromString(peer)
  const open = libp2p.getConnections(id).filter(({ status }) => status === 'open')
  const [existing] = [...open.filter(({ remoteAddr }) => isDirect(remoteAddr)), ...open]
  if (existing !== undefined) return existing
  const known = await shortened(libp2p, await knownAddresses(libp2p, id))
  const around = await sharedRelays(libp2p, id)
  const failed = new Set<string>()
  try {
    const limit = clock.deadline(KNOWN_MS, 'dialling known addresses', signal)
    if (known.length > 0) return await dialAny([...known, ...around], failed, options, limit)
  } catch (thrown) {
    if (signal.aborted) throw thrown
  }
  for (const address of known) failed.add(address.toString())
  // A relay that was only slow gets another chance; one that has refused need not say so again.
  const others = around.filter((address) => !failed.has(address.toString()))
  return await firstOf(
    [(limit) => dialFound(id, failed, options, limit), ...throughEach(others, failed, libp2p)],
    clock,
    signal,
  )
}

type Attempt = (signal: AbortSignal) => Promise<Connection>

/** Where the DHT says that the peer is, but for what has `failed`. */
async function dialFound(
  id: PeerId,
  failed: Set<string>,
  options: PeerDialOptions,
  signal: AbortSignal,
): Promise<Connection> {
  const { libp2p, untilServer } = options
  await untilServer(signal)
  const found = await shortened(libp2p, await foundAddresses(libp2p, id, signal))
  const others = found.filter((address) => !failed.has(address.toString()))
  if (others.length === 0) throw new ShoalError('peer_unreachable', 'no address of it answers')
  return await dialAny(others, failed, options, signal)
}

/** What leads straight to the peer first, then each relay. */
async function dialAny(
  addresses: readonly Multiaddr[],
  failed: Set<string>,
  { libp2p, clock }: PeerDialOptions,
  signal: AbortSignal,
): Promise<Connection> {
  const distinct = new Map(addresses.map((address) => [address.toString(), address]))
  const tried = [...distinct.values()].slice(0, LIMITS.peerAddresses)
  const direct = tried.filter((address) => isDirect(address))
  const relayed = tried.filter((address) => isRelayed(address))
  const straight: Attempt = (limit) => libp2p.dial(direct, { signal: limit })
  const attempts = [
    ...(direct.length > 0 ? [straight] : []),
    ...throughEach(relayed, failed, libp2p),
  ]
  return await firstOf(attempts, clock, signal)
}

/** Not by libp2p's queue, which dials one address of a peer after the other. Notes those that fail by themselves. */
function throughEach(
  relayed: readonly Multiaddr[],
  failed: Set<string>,
  { services }: Pick<Libp2pNode, 'services'>,
): Attempt[] {
  return relayed.map((address) => async (limit) => {
    try {
      return await services.circuits.dial(address, limit)
    } catch (thrown) {
      if (!limit.aborted) failed.add(address.toString())
      throw thrown
    }
  })
}

/**
 * The first connection, which ends the other attempts. One begins when the one before has failed, or is late (as RFC 8305
 * has it): most addresses that do not work do not even refuse. Rejects with the reason of the first.
 */
async function firstOf(
  attempts: readonly Attempt[],
  clock: Clock,
  signal: AbortSignal,
): Promise<Connection> {
  const done = new AbortController()
  const limit = AbortSignal.any([signal, done.signal])
  let turn: Promise<unknown> = Promise.resolve()
  const running = attempts.map((attempt) => {
    const own = turn
    const outcome = own.then(async () => {
      limit.throwIfAborted()
      const connection = await attempt(limit)
      done.abort()
      return connection
    })
    const late = own.then(() => clock.sleep(STAGGER_MS, limit))
    turn = Promise.race([outcome, late]).catch(() => {})
    return outcome
  })
  try {
    return await Promise.any(running)
  } catch (thrown) {
    throw thrown instanceof AggregateError ? thrown.errors[0] : thrown
  } finally {
    done.abort()
  }
}

/** What the DHT says; nothing when it does not know the peer. */
async function foundAddresses(
  { peerRouting }: Pick<Libp2pNode, 'peerRouting'>,
  id: PeerId,
  signal: AbortSignal,
): Promise<Multiaddr[]> {
  try {
    // What is known here has been tried; the failure alone has left an entry.
    const { multiaddrs } = await peerRouting.findPeer(id, { signal, useCache: false })
    return multiaddrs.map((address) => withPeer(address, id))
  } catch (thrown) {
    if (signal.aborted) throw thrown
    return []
  }
}

/** A relay has many addresses; one that is connected is needed once, by its id. */
async function shortened(
  libp2p: Pick<Libp2pNode, 'getConnections' | 'peerStore'>,
  addresses: readonly Multiaddr[],
): Promise<Multiaddr[]> {
  const relays = new Set(await neighbouringRelays({ libp2p }))
  const short = addresses.map((address) => {
    const relay = relayOf(address)
    const peer = peerOf(address)
    return relay !== undefined && peer !== undefined && relays.has(relay)
      ? throughRelay(relay, peer)
      : address
  })
  return [...new Map(short.map((address) => [address.toString(), address])).values()]
}

function throughRelay(relay: string, peer: string): Multiaddr {
  return multiaddr(`/p2p/${relay}/p2p-circuit/p2p/${peer}`)
}

/** As `connectionTo`, without relays, to addresses that are `allowed`. */
export async function dialDirectly(
  libp2p: Pick<Libp2pNode, 'dial' | 'peerStore' | 'peerRouting'>,
  peer: PeerId,
  allowed: (address: Multiaddr) => boolean,
  signal: AbortSignal,
): Promise<Connection> {
  const isFine = (address: Multiaddr): boolean => isDirect(address) && allowed(address)
  let addresses = (await knownAddresses(libp2p, peer)).filter(isFine)
  if (addresses.length === 0) {
    addresses = (await foundAddresses(libp2p, peer, signal)).filter(isFine)
  }
  if (addresses.length === 0) throw new ShoalError('peer_unreachable', 'it cannot be dialled')
  return await libp2p.dial(addresses.slice(0, LIMITS.peerAddresses), { signal })
}

export async function knownAddresses(
  libp2p: Pick<Libp2pNode, 'peerStore'>,
  peer: PeerId,
): Promise<Multiaddr[]> {
  try {
    const { addresses } = await libp2p.peerStore.get(peer)
    return addresses.map((address) => withPeer(address.multiaddr, peer))
  } catch {
    return []
  }
}

function withPeer(address: Multiaddr, peer: PeerId): Multiaddr {
  return address.toString().endsWith(`/p2p/${peer.toString()}`)
    ? address
    : address.encapsulate(`/p2p/${peer.toString()}`)
}

/** Peers of one swarm share relays more often than not: those that this node is connected to may lead to the peer. */
export async function sharedRelays(
  libp2p: Pick<Libp2pNode, 'getConnections' | 'peerStore'>,
  peer: PeerId,
): Promise<Multiaddr[]> {
  const relays = await neighbouringRelays({ libp2p })
  return relays
    .filter((relay) => relay !== peer.toString())
    .slice(0, RELAYS_TRIED)
    .map((relay) => throughRelay(relay, peer.toString()))
}

/**
 * Addresses are dialled one after the other: first what leads straight there, then relays (those around before others),
 * and private addresses last, since most of them are of other networks and do not even refuse.
 */
export function byPromise(a: Address, b: Address): -1 | 0 | 1 {
  const difference = rank(a.multiaddr) - rank(b.multiaddr)
  return difference < 0 ? -1 : difference > 0 ? 1 : 0
}

function rank(address: Multiaddr): number {
  const host = hostOf(address)
  if (isRelayed(address)) return host === undefined ? 1 : 2
  if (host === undefined || isGlobal(address)) return 0
  return host.startsWith('127.') || host === '::1' ? 4 : 3
}

/** A multiaddr or a peer id; resolves to the peer id. Rejects with `link_invalid` or `peer_unreachable`. */
export async function connectTo(
  target: string,
  options: PeerDialOptions,
  signal?: AbortSignal,
): Promise<string> {
  const { libp2p, clock } = options
  const limit = clock.deadline(DEADLINES.dialMs, 'connecting', signal)
  const address = target.startsWith('/')
    ? parseAddress(target, 'address', 'link_invalid')
    : undefined
  if (address === undefined) parsePeer(target)
  try {
    const connection =
      address === undefined
        ? await connectionTo(target, options, limit)
        : await libp2p.dial(address, { signal: limit })
    return connection.remotePeer.toString()
  } catch (cause) {
    signal?.throwIfAborted()
    const why = messageOf(limit.aborted ? limit.reason : cause)
    throw new ShoalError('peer_unreachable', `cannot connect to ${target}: ${why}`, { cause })
  }
}

function parsePeer(target: string): void {
  try {
    peerIdFromString(target)
  } catch (cause) {
    throw new ShoalError(
      'link_invalid',
      `"${target.slice(0, 128)}" is neither a multiaddr (/ip4/…/tcp/…/p2p/…) nor a peer id`,
      { cause },
    )
  }
}

/** Dials discovered neighbours in the background. They are announced again and again: one that fails gets another chance. */
export function createMeetings(
  libp2p: Libp2pNode,
  { clock, logger, stopping }: { clock: Clock; logger: Logger; stopping: AbortSignal },
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
