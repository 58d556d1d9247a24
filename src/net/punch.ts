/** The port to what makes a hole in two NATs at once: sockets, which `src` does not have. */
import type { Logger, MultiaddrConnection } from '@libp2p/interface'
import type { Endpoint, NatMapping, Reflector } from './nat.ts'

/** What one side tells the other about the socket that it has opened for them. */
export interface PunchOffer {
  /** The socket as it looks from outside. */
  outside: Endpoint
  mapping: NatMapping
  /** Names this side's end of a UDP stream. */
  streamId: number
}

export interface PunchRole {
  /** One side opens the connection that the hole is for, the other takes it. */
  isInitiator: boolean
  /** Known to the two sides only: what arrives without it came from somebody else. 16 bytes. */
  token: Uint8Array
  peer: string
  signal: AbortSignal
  log: Logger
}

export interface PunchAttempt {
  readonly offer: PunchOffer
  /** Resolves when bytes pass both ways. Rejects with the signal's reason when they never do. */
  run(remote: PunchOffer, role: PunchRole): Promise<MultiaddrConnection>
  /** Closes what `run` has not handed over. */
  close(): void
}

export interface Puncher {
  readonly kind: 'tcp' | 'udp'
  /** Opens a socket and learns how it looks from outside. Rejects when no reflector answers. */
  prepare(reflectors: readonly Reflector[], signal: AbortSignal): Promise<PunchAttempt>
}

/**
 * Whether a hole may be made. TCP needs both sides to know where to knock; a UDP side that does not know learns it from
 * the first packet that gets through.
 */
export function mayPunch(kind: Puncher['kind'], ...mappings: [NatMapping, NatMapping]): boolean {
  const dependent = mappings.filter((mapping) => mapping === 'dependent').length
  return kind === 'tcp' ? dependent === 0 : dependent < 2
}

/** Whether two are seen at one public address, or neither at any. */
export function shareLan(hosts: readonly string[], ownHosts: readonly string[]): boolean {
  return hosts.some((host) => ownHosts.includes(host)) || hosts.length + ownHosts.length === 0
}
