/** How far a node looks for others: `--network`. */
import { ShoalError } from '../../src/errors.ts'
import type { NetworkOptions } from '../../src/net/host.ts'
import type { Config } from '../config.ts'

/** The public DHT of IPFS, and those who introduce newcomers to it. */
const IPFS_DHT = '/ipfs/kad/1.0.0'
const IPFS_BOOTSTRAP = [
  '/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN',
  '/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa',
  '/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb',
  '/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ',
]

type Scope = Pick<NetworkOptions, 'bootstrap' | 'dhtProtocol' | 'isLanOnly'>

/** Throws `config_invalid` for a node that shall be public on its LAN. */
export function scopeOf({ network, bootstrap, public: isPublic }: Config): Scope {
  switch (network) {
    case 'private':
      return { bootstrap }
    case 'public':
      // Its own first: they know this swarm best.
      return { bootstrap: [...bootstrap, ...IPFS_BOOTSTRAP], dhtProtocol: IPFS_DHT }
    case 'lan':
      if (isPublic) {
        throw new ShoalError(
          'config_invalid',
          '--public serves the internet, and --network lan keeps away from it: leave one out',
        )
      }
      return { bootstrap, dhtProtocol: '/shoal/lan/kad/1.0.0', isLanOnly: true }
    default:
      return network satisfies never
  }
}
