/** How this node's sockets look from outside: asked of reflectors, by UDP and by TCP. */
import { randomBytes, randomInt } from 'node:crypto'
import { once } from 'node:events'
import { connect, isIP } from 'node:net'
import type { Socket } from 'node:net'
import { abortReason, raceSignal, systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { Endpoint, NatMapping, Reflector } from '../../src/net/nat.ts'
import { decodeStun, encodeRequest, messageLength, TRANSACTION_BYTES } from './stun.ts'
import type { StunChange } from './stun.ts'

/** A question by UDP is asked so often, this long apart. */
const UDP_TRIES = 3
const UDP_TRY_MS = 350
const TCP_ANSWER_MS = 2_000
/** Below the ports that systems give out by themselves. */
const LOCAL_PORTS = [20_000, 32_000] as const
const LOCAL_PORT_TRIES = 8

export interface Outside {
  outside: Endpoint
  mapping: NatMapping
}

/** A socket that can ask: of Node, or of UDX. */
export interface DatagramSocket {
  send(bytes: Buffer, to: Endpoint): void
  /** Called with every datagram; returns the function that ends it. */
  onMessage(listener: (bytes: Buffer, from: Endpoint) => void): () => void
}

/** Undefined when no answer comes. */
export async function askUdp(
  socket: DatagramSocket,
  to: Endpoint,
  signal: AbortSignal,
  change: StunChange = 'none',
): Promise<Endpoint | undefined> {
  const transaction = randomBytes(TRANSACTION_BYTES)
  const answered = new AbortController()
  let mapped: Endpoint | undefined
  const remove = socket.onMessage((bytes) => {
    const message = decodeStun(bytes)
    if (message?.kind !== 'response' || !transaction.equals(message.transaction)) return
    mapped = message.mapped
    answered.abort()
  })
  try {
    for (let attempt = 0; attempt < UDP_TRIES && !answered.signal.aborted; attempt++) {
      socket.send(encodeRequest(transaction, change), to)
      await systemClock
        .sleep(UDP_TRY_MS, AbortSignal.any([signal, answered.signal]))
        .catch(() => {})
      if (signal.aborted) throw abortReason(signal)
    }
    return mapped
  } finally {
    remove()
  }
}

/** Those that are reached by IPv4, or by IPv6. */
export function ofFamily(reflectors: readonly Reflector[], family: 4 | 6): Reflector[] {
  return reflectors.filter(({ host }) => isIP(host) === family)
}

/** Holes are made for IPv4: by IPv6 there is no NAT, and WebRTC opens firewalls. Throws `refused`. */
export function refuseIp6(host: string): void {
  if (isIP(host) !== 4) throw new ShoalError('refused', `${host} is no IPv4 address`)
}

/** Ports of the reflectors in an order that tells most: another host first, then another port. */
export function endpointsOf(reflectors: readonly Reflector[]): Endpoint[] {
  const hosts = new Map(reflectors.map(({ host, ports }) => [host, ports]))
  const first = [...hosts].flatMap(([host, [port]]) => (port === undefined ? [] : [{ host, port }]))
  const others = [...hosts].flatMap(([host, [, ...ports]]) => ports.map((port) => ({ host, port })))
  return [...first, ...others]
}

/** Rejects with `peer_unreachable` when no reflector answers. */
export async function udpOutside(
  socket: DatagramSocket,
  reflectors: readonly Reflector[],
  signal: AbortSignal,
): Promise<Outside> {
  const asked = endpointsOf(reflectors).slice(0, 3)
  const answers = await Promise.all(asked.map((endpoint) => askUdp(socket, endpoint, signal)))
  return compare(answers, 'UDP')
}

export interface TcpOutside extends Outside {
  localPort: number
  /** Keep the NAT's port until they are closed. */
  sockets: Socket[]
}

/**
 * Connects from one local port to several reflectors. Only sockets with an explicit local port share it with further
 * ones. Rejects with `peer_unreachable` when no reflector answers.
 */
export async function tcpOutside(
  reflectors: readonly Reflector[],
  signal: AbortSignal,
): Promise<TcpOutside> {
  const [first, second] = endpointsOf(reflectors)
  if (first === undefined) throw new ShoalError('peer_unreachable', 'no reflector is known')
  const sockets: Socket[] = []
  try {
    const localPort = await bindSomewhere(first, sockets, signal)
    if (second !== undefined) await reflectTcp(second, localPort, sockets, signal)
    const answers = await Promise.all(sockets.map((socket) => askTcp(socket, signal)))
    return { ...compare(answers, 'TCP'), localPort, sockets }
  } catch (thrown) {
    for (const socket of sockets) socket.destroy()
    throw thrown
  }
}

async function bindSomewhere(
  to: Endpoint,
  sockets: Socket[],
  signal: AbortSignal,
): Promise<number> {
  for (let attempt = 1; ; attempt++) {
    const localPort = randomInt(...LOCAL_PORTS)
    try {
      await reflectTcp(to, localPort, sockets, signal)
      return localPort
    } catch (thrown) {
      const isTaken = thrown instanceof Error && 'code' in thrown && thrown.code === 'EADDRINUSE'
      if (!isTaken || attempt === LOCAL_PORT_TRIES) throw thrown
    }
  }
}

async function reflectTcp(
  { host, port }: Endpoint,
  localPort: number,
  sockets: Socket[],
  signal: AbortSignal,
): Promise<void> {
  const socket = connect({ host, port, localPort, noDelay: true })
  const limit = systemClock.deadline(TCP_ANSWER_MS, 'a reflector', signal)
  try {
    await raceSignal(once(socket, 'connect'), limit)
    socket.on('error', () => socket.destroy())
    sockets.push(socket)
  } catch (thrown) {
    socket.destroy()
    throw thrown
  }
}

async function askTcp(socket: Socket, signal: AbortSignal): Promise<Endpoint | undefined> {
  const limit = systemClock.deadline(TCP_ANSWER_MS, 'a reflector', signal)
  socket.write(encodeRequest(randomBytes(TRANSACTION_BYTES)))
  let held = Buffer.alloc(0)
  try {
    for (;;) {
      const [bytes]: unknown[] = await raceSignal(once(socket, 'data', { signal: limit }), limit)
      if (Buffer.isBuffer(bytes)) held = Buffer.concat([held, bytes])
      const length = messageLength(held)
      if (length === undefined || held.length < length) continue
      const message = decodeStun(held.subarray(0, length))
      return message?.kind === 'response' ? message.mapped : undefined
    }
  } catch {
    return undefined
  }
}

function compare(answers: readonly (Endpoint | undefined)[], what: string): Outside {
  const known = answers.filter((answer) => answer !== undefined)
  const [outside] = known
  if (outside === undefined) {
    throw new ShoalError('peer_unreachable', `no reflector answered by ${what}`)
  }
  const isSame = known.every(({ host, port }) => host === outside.host && port === outside.port)
  return { outside, mapping: isSame ? 'independent' : 'dependent' }
}
