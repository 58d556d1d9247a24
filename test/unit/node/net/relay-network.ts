/** Real networks on loopback TCP, some of which nobody can dial. */
import { randomInt } from 'node:crypto'
import { onTestFinished } from 'vitest'
import { openReflector } from '../../../../node/net/reflector.ts'
import { nodeEncrypters } from '../../../../node/net/tls.ts'
import { nodeTransports } from '../../../../node/net/transports.ts'
import { systemClock } from '../../../../src/clock.ts'
import { silentLogger } from '../../../../src/log.ts'
import { createNetwork } from '../../../../src/net/host.ts'
import type { NetworkOptions } from '../../../../src/net/host.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { Network } from '../../../../src/net/network.ts'
import type { RelayLimits } from '../../../../src/net/relay-server.ts'
import { until } from '../../net/memory-network.ts'

export const RELAY_LIMITS: RelayLimits = {
  reservations: 16,
  circuits: 16,
  circuitsPerPeer: 8,
  circuitBytes: 1e9,
  circuitMs: 60_000,
  bytesPerSecond: 1e9,
}

export async function startTcpNetwork(options: Partial<NetworkOptions> = {}): Promise<Network> {
  const identity = await createIdentity()
  const network = await createNetwork({
    identity,
    transports: nodeTransports(),
    connectionEncrypters: nodeEncrypters(),
    listen: ['/ip4/127.0.0.1/tcp/0'],
    ...options,
  })
  onTestFinished(() => network.stop())
  return network
}

/** The ports on which it answers. */
export async function startReflector(): Promise<number[]> {
  const first = randomInt(40_000, 50_000)
  const ports = [first, first + 1]
  const reflector = await openReflector({ ports, clock: systemClock, logger: silentLogger })
  onTestFinished(() => reflector.close())
  return reflector.ports
}

export async function startRelay(
  limits: Partial<RelayLimits> = {},
  options: Partial<NetworkOptions> = {},
): Promise<Network> {
  return await startTcpNetwork({
    isPublic: true,
    relay: { ...RELAY_LIMITS, ...limits },
    ...options,
  })
}

/** Two that nobody can dial, each in reach through all the relays. */
export async function startHidden(
  relays: readonly Network[],
  options: Partial<NetworkOptions> = {},
): Promise<[Network, Network]> {
  const bootstrap = relays.flatMap((relay) => relay.addresses())
  const [first, second] = [
    await startTcpNetwork({ listen: [], bootstrap, ...options }),
    await startTcpNetwork({ listen: [], bootstrap, ...options }),
  ]
  await until(() =>
    [first, second].every((node) => node.relays().length === Math.min(2, relays.length)),
  )
  return [first, second]
}
