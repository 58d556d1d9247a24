/**
 * Keeps peers that do not serve out of the DHT's routing table.
 *
 * kad-dht takes up every peer that a message mentions, providers included, once it has answered a ping. Peers behind a NAT
 * do, through a relay, and every look-up would then go by way of peers that have nothing to say.
 */
import type { Libp2p, PeerId } from '@libp2p/interface'
import type { Ping } from '@libp2p/ping'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { isRelayed } from './addresses.ts'

/** For a peer that has just been dialled to say what it speaks. */
const IDENTIFY_MS = 3_000
const LOOK_MS = 50

/** `ping` with a condition: resolves only for a peer that others can dial and that speaks `protocol`. */
export function pingDhtServers(
  ping: Ping,
  protocol: string,
  peerStore: Libp2p['peerStore'],
  clock: Clock,
): Ping {
  const original = ping.ping.bind(ping)

  async function protocolsOf(peer: PeerId): Promise<string[]> {
    return (await peerStore.get(peer).catch(() => undefined))?.protocols ?? []
  }

  ping.ping = async (target, options) => {
    if (!isPeerId(target)) return await original(target, options)
    const known = await peerStore.get(target).catch(() => undefined)
    // Who is announced under a relay's address cannot be dialled.
    if (known?.addresses.some(({ multiaddr }) => isRelayed(multiaddr)) === true) {
      throw new ShoalError('refused', 'a peer behind a relay serves no DHT')
    }
    const rttMs = await original(target, options)
    const patience = clock.now() + IDENTIFY_MS
    let protocols = await protocolsOf(target)
    while (!protocols.includes(protocol)) {
      // All that it speaks is told at once.
      if (protocols.length > 2 || clock.now() > patience) {
        throw new ShoalError('refused', 'the peer serves no DHT')
      }
      await clock.sleep(LOOK_MS, options?.signal ?? undefined)
      protocols = await protocolsOf(target)
    }
    return rttMs
  }
  return ping
}

function isPeerId(target: unknown): target is PeerId {
  return typeof target === 'object' && target !== null && 'toMultihash' in target
}
