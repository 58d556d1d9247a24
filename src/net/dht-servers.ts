/** The DHT servers that this node can ask: how many, when one comes, and whether it is worth waiting for one. */
import type { IdentifyResult, Libp2p, PeerId } from '@libp2p/interface'
import type { KadDHT, SingleKadDHT } from '@libp2p/kad-dht'
import type { Clock } from '../clock.ts'

/** Right after the start the first server is a matter of moments: how long a look-up waits, and between two looks. */
const PATIENCE_MS = 5_000
const LOOK_MS = 50

export interface DhtServersOptions {
  libp2p: Pick<Libp2p, 'addEventListener' | 'removeEventListener'>
  dht: KadDHT
  dhtProtocol: string
  clock: Clock
  isConnected: () => boolean
  /** Whether a first connection may come any moment. */
  isDialling: () => boolean
  /** A server has connected, or a connected peer has become one. */
  onServer: () => void
}

export interface DhtServers {
  /** In the routing table. */
  known(): number
  /** Waits a moment for the first, if one may turn up. Rejects with the signal's reason. */
  untilKnown(signal: AbortSignal): Promise<void>
  stop(): void
}

export function watchDhtServers(options: DhtServersOptions): DhtServers {
  const { libp2p, dht, clock } = options
  const connected = new Set<string>()
  const onIdentify = ({ detail }: CustomEvent<IdentifyResult>): void => {
    const peer = detail.peerId.toString()
    if (!detail.protocols.includes(options.dhtProtocol) || connected.has(peer)) return
    connected.add(peer)
    options.onServer()
  }
  const onDisconnect = ({ detail }: CustomEvent<PeerId>): void => {
    connected.delete(detail.toString())
  }
  libp2p.addEventListener('peer:identify', onIdentify)
  libp2p.addEventListener('peer:disconnect', onDisconnect)

  const known = (): number => (isSingle(dht) ? dht.routingTable.size : 0)
  // A client's neighbours may become servers. A server whose neighbours are clients waits for nobody: it asks itself.
  const isHopeful = (): boolean =>
    options.isDialling() ||
    (dht.getMode() === 'client' ? options.isConnected() : connected.size > 0)

  return {
    known,
    async untilKnown(signal) {
      const patience = clock.now() + PATIENCE_MS
      // Sleeps once in any case: who looks up again and again must let the rest of the process work.
      do await clock.sleep(known() > 0 ? 0 : LOOK_MS, signal)
      while (known() === 0 && isHopeful() && clock.now() < patience)
    },
    stop() {
      libp2p.removeEventListener('peer:identify', onIdentify)
      libp2p.removeEventListener('peer:disconnect', onDisconnect)
    },
  }
}

/** `kadDHT()` of one network has a routing table; its declared type is wider. */
function isSingle(dht: KadDHT): dht is SingleKadDHT {
  return 'routingTable' in dht
}
