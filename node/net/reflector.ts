/**
 * Tells others where their packets come from: a STUN server on the same ports by UDP and TCP, and on every address of the
 * machine, so that a second one answers where somebody asks how their NAT filters (RFC 5780).
 */
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, isIPv6 } from 'node:net'
import type { Server, Socket } from 'node:net'
import { networkInterfaces } from 'node:os'
import type { Clock } from '../../src/clock.ts'
import { messageOf } from '../../src/errors.ts'
import type { Logger } from '../../src/log.ts'
import { createRateLimit } from '../../src/net/rate-limit.ts'
import type { RateLimit } from '../../src/net/rate-limit.ts'
import { decodeStun, encodeResponse, messageLength } from './stun.ts'
import type { StunChange } from './stun.ts'

/** Of one IP: a search for a path asks some ten times. */
const PER_MINUTE = 600
const BURST = 60
const CONNECTIONS = 512
/** A hole is punched while the connection is kept, so that the NAT keeps the port. */
const IDLE_MS = 30_000

export interface Reflector {
  /** On which it answers; empty when it could listen nowhere. */
  readonly ports: number[]
  close(): Promise<void>
}

export interface ReflectorOptions {
  ports: readonly number[]
  clock: Clock
  logger: Logger
}

/** Listens where it can: what is taken or not permitted is logged and left out. */
export async function openReflector(options: ReflectorOptions): Promise<Reflector> {
  const { clock } = options
  const rate = createRateLimit({ perMinute: PER_MINUTE, burst: BURST, clock })
  const udp = await openUdp(options, rate)
  const tcp = await openTcp(options, rate)
  const answers = options.ports.filter((port) => udp.ports.has(port) && tcp.ports.has(port))
  return {
    ports: answers,
    async close() {
      await Promise.all([udp.close(), tcp.close()])
    },
  }
}

interface Opened {
  ports: ReadonlySet<number>
  close(): Promise<void>
}

function ownHosts(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  // Nobody is far away by a link-local address.
  return all.map(({ address }) => address).filter((host) => !/^fe[89ab]/i.test(host))
}

interface Bound {
  host: string
  port: number
  socket: UdpSocket
}

async function openUdp({ ports, logger }: ReflectorOptions, rate: RateLimit): Promise<Opened> {
  const bound: Bound[] = []
  for (const host of ownHosts()) {
    for (const port of ports) {
      const socket = createSocket({ type: isIPv6(host) ? 'udp6' : 'udp4' })
      try {
        socket.bind(port, host)
        await once(socket, 'listening')
        bound.push({ host, port, socket })
      } catch (thrown) {
        socket.close()
        logger.warn('reflector_not_listening', { host, port, message: messageOf(thrown) })
      }
    }
  }
  for (const own of bound) {
    own.socket.on('error', (error) => logger.debug('reflector_failed', { message: error.message }))
    own.socket.on('message', (bytes, from) => {
      const message = decodeStun(bytes)
      if (message?.kind !== 'request' || !rate.allows(from.address)) return
      const answering = answerer(bound, own, message.change)
      const mapped = { host: from.address, port: from.port }
      answering?.socket.send(encodeResponse(message.transaction, mapped), from.port, from.address)
    })
  }
  return {
    ports: new Set(bound.map(({ port }) => port)),
    async close() {
      await Promise.all(
        bound.map(
          ({ socket }) => new Promise<void>((resolve) => void socket.close(() => resolve())),
        ),
      )
    },
  }
}

/** The socket that the answer is to come from; none when there is no second address. */
function answerer(bound: readonly Bound[], asked: Bound, change: StunChange): Bound | undefined {
  switch (change) {
    case 'none':
      return asked
    case 'port':
      return bound.find(({ host, port }) => host === asked.host && port !== asked.port)
    case 'address-and-port':
      return bound.find(
        ({ host, port }) =>
          host !== asked.host &&
          port !== asked.port &&
          isIPv6(host) === isIPv6(asked.host) &&
          isLoopback(host) === isLoopback(asked.host),
      )
    default:
      return change satisfies never
  }
}

function isLoopback(host: string): boolean {
  return host.startsWith('127.') || host === '::1'
}

async function openTcp({ ports, logger }: ReflectorOptions, rate: RateLimit): Promise<Opened> {
  const servers: { port: number; server: Server }[] = []
  const sockets = new Set<Socket>()
  const hosts = ownHosts().some((host) => isIPv6(host)) ? ['0.0.0.0', '::'] : ['0.0.0.0']
  for (const host of hosts) {
    for (const port of ports) {
      const server = createServer((socket) => {
        sockets.add(socket)
        socket.once('close', () => sockets.delete(socket))
        reflect(socket, rate)
      })
      server.maxConnections = CONNECTIONS
      try {
        server.listen({ port, host, ipv6Only: isIPv6(host) })
        await once(server, 'listening')
        servers.push({ port, server })
      } catch (thrown) {
        logger.warn('reflector_not_listening', { host, port, message: messageOf(thrown) })
      }
    }
  }
  return {
    ports: new Set(servers.map(({ port }) => port)),
    async close() {
      for (const socket of sockets) socket.destroy()
      await Promise.all(
        servers.map(
          ({ server }) => new Promise<void>((resolve) => void server.close(() => resolve())),
        ),
      )
    },
  }
}

/** Answers each request on the connection; whatever else comes ends it. */
function reflect(socket: Socket, rate: RateLimit): void {
  let held: Buffer = Buffer.alloc(0)
  socket.setTimeout(IDLE_MS, () => socket.destroy())
  socket.on('error', () => socket.destroy())
  socket.on('data', (bytes) => {
    held = Buffer.concat([held, bytes])
    for (;;) {
      const length = messageLength(held)
      if (length === undefined || (length > 0 && held.length < length)) return
      const message = decodeStun(held.subarray(0, length))
      const { remoteAddress: host, remotePort: port } = socket
      const isFine = message?.kind === 'request' && host !== undefined && port !== undefined
      if (!isFine || !rate.allows(host)) {
        socket.destroy()
        return
      }
      socket.write(encodeResponse(message.transaction, { host, port }))
      held = held.subarray(length)
    }
  })
}
