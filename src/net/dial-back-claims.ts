/**
 * What a neighbour claims about where it has reached this node, and how much of it is believed.
 *
 * A connection that comes in does not show which address it was made to, once a router has rewritten it: that is the
 * neighbour's word. It counts about an address of this machine, when the connection came by the same kind of network; and
 * about any other only when the router, or neighbours of several networks (`sightings.ts`), say too that the IP is this
 * node's. Else one neighbour could have all others dial a third party.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import type { Logger } from '../log.ts'
import { hostOf, isGlobal, isIp6, isUnaided, portOf, transportOf, withHost } from './addresses.ts'
import { askDialBack } from './dial-back.ts'
import type { DialBackOutcome } from './dial-back.ts'
import type { PortForwarding } from './nat.ts'
import type { PeerRpc } from './network.ts'
import type { Sightings } from './sightings.ts'

/** The answer of a neighbour that has dialled may be here before its handshake is over. */
const ARRIVAL_MS = 1_000

export interface ClaimOptions {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener'>
  rpc: PeerRpc
  clock: Clock
  logger: Logger
  sightings: Sightings
  /** All addresses this node listens on, announced or not. */
  listenAddresses: () => Multiaddr[]
  /** What the router forwards to this node, as it says itself. */
  forwarding: () => PortForwarding | undefined
  /** Whether a connection goes through a hole that both sides made. */
  isPunched: (connection: Connection) => boolean
}

/** Where this node may be dialled, for a neighbour that sees it at `seen`. */
export function candidates(
  { listenAddresses, forwarding }: Pick<ClaimOptions, 'listenAddresses' | 'forwarding'>,
  seen: Multiaddr | undefined,
): Multiaddr[] {
  const own = listenAddresses().filter((address) => hostOf(address) !== undefined)
  const host = seen && hostOf(seen)
  // Where a router forwards the port, it is most often the same outside.
  const mapped = host === undefined ? [] : own.map((address) => withHost(address, host))
  const { outside, port } = forwarding() ?? {}
  const forwarded = outside
    ? own
        .filter((address) => portOf(address) === port && transportOf(address) === 'tcp')
        .map((address) => withHost(address, outside.host, outside.port))
    : []
  const all = [...forwarded, ...own, ...mapped]
  return [...new Map(all.map((address) => [address.toString(), address])).values()]
}

/** Came in through no relay, and no hole that was punched for it. */
export function isProof(
  connection: Connection,
  { isPunched }: Pick<ClaimOptions, 'isPunched'>,
): boolean {
  const { direction, remoteAddr } = connection
  return direction === 'inbound' && isUnaided(remoteAddr) && !isPunched(connection)
}

/** As `askDialBack`; what a neighbour claims to have reached is believed as far as it can be checked. */
export async function claimOf(
  peer: string,
  addresses: readonly Multiaddr[],
  options: ClaimOptions,
  signal: AbortSignal,
): Promise<DialBackOutcome> {
  const { libp2p, rpc, clock, logger } = options
  const arrived = new AbortController()
  const cameFrom: Multiaddr[] = []
  const onOpen = ({ detail }: CustomEvent<Connection>): void => {
    if (detail.remotePeer.toString() !== peer || !isProof(detail, options)) return
    cameFrom.push(detail.remoteAddr)
    arrived.abort()
  }
  libp2p.addEventListener('connection:open', onOpen)
  try {
    const outcome = await askDialBack(rpc, peer, addresses, signal)
    if (outcome.kind !== 'reached') return outcome
    const either = AbortSignal.any([signal, arrived.signal])
    await clock.sleep(ARRIVAL_MS, either).catch(() => {})
    if (cameFrom.some((from) => isCredible(outcome.address, from, options))) return outcome
    const hasArrived = arrived.signal.aborted
    logger.debug('address_not_believed', { peer, address: outcome.address.toString(), hasArrived })
    return { kind: 'unknown' }
  } finally {
    libp2p.removeEventListener('connection:open', onOpen)
  }
}

/** Whether a connection from there, and what others say, bear out that it was made to this address. */
function isCredible(
  address: Multiaddr,
  cameFrom: Multiaddr,
  { listenAddresses, forwarding, sightings }: ClaimOptions,
): boolean {
  const host = hostOf(address)
  const isSameWay = isIp6(address) === isIp6(cameFrom) && (isGlobal(cameFrom) || !isGlobal(address))
  if (host === undefined || !isSameWay) return false
  const isOwn = listenAddresses().some((own) => hostOf(own) === host)
  return isOwn || forwarding()?.outside?.host === host || sightings.isCorroborated(host)
}
