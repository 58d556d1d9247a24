/**
 * `net/dial-back`: asks a neighbour to dial this node, to learn whether others can.
 *
 * A neighbour must not become a tool to dial third parties: it dials only the IP address that the caller is seen at, on
 * a new connection, authenticated as the caller, and rarely.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Multiaddr } from '@multiformats/multiaddr'
import { multiaddr } from '@multiformats/multiaddr'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import { hostOf, isGlobal, isUnaided, peerOf } from './addresses.ts'
import type { PeerRpc } from './network.ts'
import type { Offences } from './offences.ts'
import { createRateLimit } from './rate-limit.ts'

const METHOD = 'net/dial-back'
const MESSAGE_BYTES = 8192
/** Requests served at once, and of one peer: now and one soon after, for a node whose network has just changed. */
const AT_ONCE = 8
const PER_MINUTE = 1
const BURST = 2

const requestSchema = z.strictObject({
  addresses: z.array(z.string().max(256)).min(1).max(LIMITS.peerAddresses),
})
const replySchema = z.strictObject({ reached: z.string().max(256) })

export type DialBackOutcome =
  | { kind: 'reached'; address: Multiaddr }
  /** The neighbour tried and failed. */
  | { kind: 'unreachable' }
  /** The neighbour did not try. */
  | { kind: 'unknown' }

/** Never rejects. */
export async function askDialBack(
  rpc: PeerRpc,
  peer: string,
  candidates: readonly Multiaddr[],
  signal: AbortSignal,
): Promise<DialBackOutcome> {
  const own = candidates.slice(0, LIMITS.peerAddresses)
  if (own.length === 0) return { kind: 'unknown' }
  try {
    const request = encodeCbor({ addresses: own.map((address) => address.toString()) })
    const reply = await rpc.call(peer, METHOD, request, {
      signal,
      deadlineMs: DEADLINES.dialBackMs + DEADLINES.rpcMs,
    })
    const { reached } = parseMessage(replySchema, reply, 'dial-back', MESSAGE_BYTES)
    // Believed only about addresses that this node has named itself.
    const address = own.find((candidate) => candidate.toString() === reached)
    return address === undefined ? { kind: 'unknown' } : { kind: 'reached', address }
  } catch (thrown) {
    const hasTried =
      thrown instanceof ShoalError &&
      thrown.code === 'peer_unreachable' &&
      thrown.details['remote'] === true
    return { kind: hasTried ? 'unreachable' : 'unknown' }
  }
}

/** Returns the function that ends the service. */
export function serveDialBack(
  rpc: PeerRpc,
  libp2p: Pick<Libp2p, 'getConnections' | 'dial'>,
  clock: Clock,
  offences: Pick<Offences, 'note'>,
): () => void {
  const rate = createRateLimit({ perMinute: PER_MINUTE, burst: BURST, clock })
  let dialling = 0

  return rpc.handle(METHOD, async (request, { peer, signal }) => {
    const { addresses } = parseMessage(requestSchema, request, `"${METHOD}" request`, MESSAGE_BYTES)
    // No offence: whoever changes networks, or is made to believe it, asks too often and means no harm.
    if (!rate.allows(peer)) throw new ShoalError('limit_exceeded', 'ask again in a minute')
    const hosts = seenAt(libp2p.getConnections(peerIdFromString(peer)))
    const candidates = dialable(addresses, peer, hosts)
    if (candidates.length === 0) {
      // Whom this node has dialled itself cannot know at which address it is seen.
      if (hosts.size > 0 && addresses.some((text) => isForeign(text, hosts))) {
        offences.note(peer, 'foreign_address', 'it asked to dial back to hosts of others')
      }
      throw new ShoalError('refused', 'none of the addresses has the IP that you are seen at')
    }
    if (dialling >= AT_ONCE) throw new ShoalError('limit_exceeded', 'ask again in a minute')
    dialling++
    try {
      const limit = clock.deadline(DEADLINES.dialBackMs, 'dialling back', signal)
      const connection = await libp2p.dial(candidates, { force: true, signal: limit })
      const reached = connection.remoteAddr.toString()
      await connection.close({ signal: limit })
      return encodeCbor({ reached })
    } catch (cause) {
      throw new ShoalError('peer_unreachable', `could not dial back: ${messageOf(cause)}`, {
        cause,
      })
    } finally {
      dialling--
    }
  })
}

/** IPs from which a peer has dialled this node itself. */
function seenAt(connections: readonly Connection[]): Set<string | undefined> {
  const inbound = connections.filter(
    ({ direction, remoteAddr }) => direction === 'inbound' && isUnaided(remoteAddr),
  )
  return new Set(inbound.map(({ remoteAddr }) => hostOf(remoteAddr)))
}

/** On the internet, and not where the peer is. */
function isForeign(text: string, hosts: ReadonlySet<string | undefined>): boolean {
  try {
    const address = multiaddr(text)
    return isGlobal(address) && !hosts.has(hostOf(address))
  } catch {
    return false
  }
}

function dialable(
  texts: readonly string[],
  peer: string,
  hosts: ReadonlySet<string | undefined>,
): Multiaddr[] {
  return texts.flatMap((text) => {
    try {
      const address = multiaddr(text)
      const host = hostOf(address)
      const isCallers = host !== undefined && hosts.has(host) && peerOf(address) === peer
      return isCallers && isUnaided(address) ? [address] : []
    } catch {
      return []
    }
  })
}
