/** Real networks on libp2p's in-memory transport: everything but sockets. */
import { memory } from '@libp2p/memory'
import { plaintext } from '@libp2p/plaintext'
import { onTestFinished } from 'vitest'
import type { Logger } from '../../../src/log.ts'
import { createNetwork } from '../../../src/net/host.ts'
import type { NetworkOptions } from '../../../src/net/host.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import type { Network } from '../../../src/net/network.ts'

let count = 0

/** Stopped when the test ends. Listens on a fresh `/memory/…` address unless told otherwise. */
export async function startMemoryNetwork(options: Partial<NetworkOptions> = {}): Promise<Network> {
  const network = await createNetwork({
    identity: await createIdentity(),
    transports: [memory()],
    connectionEncrypters: [plaintext()],
    listen: [freshAddress()],
    ...options,
  })
  onTestFinished(() => network.stop())
  return network
}

export function freshAddress(): string {
  return `/memory/net-${process.pid}-${count++}`
}

/** Two networks, the first connected to the second. */
export async function startPair(
  options: Partial<NetworkOptions> = {},
): Promise<[client: Network, server: Network]> {
  const server = await startMemoryNetwork(options)
  const client = await startMemoryNetwork(options)
  await client.connect(addressOf(server))
  return [client, server]
}

export function addressOf(network: Network): string {
  const [address] = network.addresses()
  if (address === undefined) throw new Error('the network listens nowhere')
  return address
}

/** Resolves when `check` holds; the test's time-out is the deadline. */
export async function until(check: () => boolean): Promise<void> {
  while (!check()) await new Promise((resolve) => setTimeout(resolve, 10))
}

export interface RecordedEvent {
  level: string
  event: string
  fields: Record<string, unknown>
}

/** A logger that keeps what it is told. */
export function createRecorder(): { logger: Logger; events: RecordedEvent[] } {
  const events: RecordedEvent[] = []
  const at =
    (level: string) =>
    (event: string, fields: Record<string, unknown> = {}): void => {
      events.push({ level, event, fields })
    }
  const logger: Logger = {
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    child: () => logger,
  }
  return { logger, events }
}
