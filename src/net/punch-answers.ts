/**
 * The answering side of `direct-paths.ts`.
 *
 * Any peer may ask, so little is done for each: a few requests a minute, a few attempts at once, and packets only to
 * addresses of the internet (or of this node's own kind of network), so that a peer cannot have others knocked at, nor
 * look into a LAN.
 */
import type { Multiaddr } from '@multiformats/multiaddr'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { encodeCbor } from '../store/content.ts'
import { hostOf, isGlobal, isGlobalHost } from './addresses.ts'
import { dialable, dialPeer, hasDirect } from './direct-paths.ts'
import type { PathContext } from './direct-paths.ts'
import {
  descriptionSchema,
  DESCRIBE_METHOD,
  DIAL_METHOD,
  dialSchema,
  GO_METHOD,
  goSchema,
  parsePath,
  PUNCH_METHOD,
  punchSchema,
} from './punch-messages.ts'
import type { PunchAttempt, PunchOffer } from './punch.ts'
import { createRateLimit } from './rate-limit.ts'
import { serveWebRtc } from './webrtc-paths.ts'

/** Of one peer: a search is five requests at most, and the first few come soon after each other. */
const PER_MINUTE = 8
const BURST = 12

interface Pending {
  attempt: PunchAttempt
  remote: PunchOffer
  token: Uint8Array
}

/** Returns the function that ends the service. */
export function servePunches(context: PathContext): () => void {
  const { rpc, clock, logger } = context
  const rate = createRateLimit({ perMinute: PER_MINUTE, burst: BURST, clock })
  const pending = new Map<string, Pending>()
  const limited = (peer: string): void => {
    if (rate.allows(peer)) return
    context.offences.note(peer, 'flood', 'too many requests for paths')
    throw new ShoalError('limit_exceeded', 'ask again in a minute')
  }
  const removers = [
    serveWebRtc(context, limited),
    rpc.handle(DESCRIBE_METHOD, async (request, { peer }) => {
      limited(peer)
      parsePath(descriptionSchema, request)
      return encodeCbor(context.describe())
    }),
    rpc.handle(DIAL_METHOD, async (request, { peer }) => {
      limited(peer)
      const { addresses } = parsePath(dialSchema, request)
      const candidates = dialable(peer, { addresses, hosts: [] }, ['']).filter(isWorthy)
      await dialPeer(peer, candidates.slice(0, 4), context).catch((thrown: unknown) => {
        logger.debug('path_failed', { peer, way: 'reverse', message: messageOf(thrown) })
      })
      return encodeCbor({ isConnected: hasDirect(peer, context) })
    }),
    rpc.handle(PUNCH_METHOD, async (request, { peer }) => {
      limited(peer)
      return encodeCbor({ offer: await prepare(peer, request, pending, context) })
    }),
    rpc.handle(GO_METHOD, async (request, { peer }) => {
      const { token } = parsePath(goSchema, request)
      const found = pending.get(peer)
      if (found === undefined || !isSame(found.token, token)) {
        throw new ShoalError('refused', 'nothing was prepared')
      }
      pending.delete(peer)
      run(peer, found, context).catch((thrown: unknown) => {
        logger.debug('punch_failed', { peer, message: messageOf(thrown) })
      })
      return new Uint8Array()
    }),
  ]
  return () => {
    for (const remove of removers) remove()
    for (const peer of pending.keys()) drop(peer, pending)
  }
}

/** One per peer. */
type Prepared = Map<string, Pending>

function drop(peer: string, pending: Prepared): void {
  pending.get(peer)?.attempt.close()
  pending.delete(peer)
}

async function prepare(
  peer: string,
  request: Uint8Array,
  pending: Prepared,
  { punchers, nat, clock, signal }: PathContext,
): Promise<PunchOffer> {
  const { kind, token, offer } = parsePath(punchSchema, request)
  const puncher = punchers.find((candidate) => candidate.kind === kind)
  if (puncher === undefined) throw new ShoalError('refused', `this node punches no ${kind}`)
  const limit = clock.deadline(DEADLINES.punchMs, 'preparing to punch', signal)
  drop(peer, pending)
  if (pending.size >= LIMITS.punches) {
    throw new ShoalError('limit_exceeded', 'too many holes are being made')
  }
  const attempt = await puncher.prepare(nat.reflectors(), limit)
  if (!isFair(offer, attempt.offer)) {
    attempt.close()
    throw new ShoalError('refused', 'the address is not of the internet')
  }
  drop(peer, pending)
  pending.set(peer, { attempt, remote: offer, token })
  // The word to go may never come.
  limit.addEventListener('abort', () => {
    if (pending.get(peer)?.attempt === attempt) drop(peer, pending)
  })
  return attempt.offer
}

async function run(
  peer: string,
  { attempt, remote, token }: Pending,
  context: PathContext,
): Promise<void> {
  const { upgrade, punched } = context
  const signal = context.clock.deadline(DEADLINES.punchMs, 'punching', context.signal)
  try {
    const role = { isInitiator: false, token, peer, signal, log: upgrade.log }
    const wire = await attempt.run(remote, role)
    punched.add(wire.remoteAddr.toString())
    await upgrade.inbound(wire, signal)
  } finally {
    attempt.close()
  }
}

function isWorthy(address: Multiaddr): boolean {
  return isGlobal(address) && hostOf(address) !== undefined
}

/** A private address is knocked at only from within a private network: one that reflectors see as such too. */
function isFair(remote: PunchOffer, own: PunchOffer): boolean {
  return isGlobalHost(remote.outside.host) || !isGlobalHost(own.outside.host)
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index])
}
