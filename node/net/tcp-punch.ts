/**
 * TCP simultaneous open: both sides connect to each other's outside port at the same time, again and again, so that each
 * NAT takes the other side's packets for answers (Ford, Srisuresh, Kegel 2005, "Peer-to-peer communication across network
 * address translators", §4). Works where a NAT keeps one outside port for one local port.
 *
 * Node cannot connect from a port that listens, but two sockets may connect from one port that both name: the connection
 * to the reflector, which tells the outside port and keeps it, and the one to the peer.
 */
import { randomInt } from 'node:crypto'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { multiaddr } from '@multiformats/multiaddr'
import { abortReason, systemClock } from '../../src/clock.ts'
import { messageOf, ShoalError } from '../../src/errors.ts'
import type { Endpoint } from '../../src/net/nat.ts'
import { TOKEN_BYTES } from '../../src/net/punch-messages.ts'
import type { Puncher, PunchRole } from '../../src/net/punch.ts'
import { ofFamily, refuseIp6, tcpOutside } from './outside.ts'
import { SocketConnection } from './socket-connection.ts'

/** A first packet that the other NAT has dropped is sent again by the system after a second. */
const CONNECT_MS = 1_800
/** After a refusal; at random, so that two sides cannot miss each other for ever. */
const PAUSE_MS = [20, 100] as const
const TOKEN_MS = 1_500

export function tcpPuncher(): Puncher {
  return {
    kind: 'tcp',
    async prepare(reflectors, signal) {
      const known = ofFamily(reflectors, 4)
      const { outside, mapping, localPort, sockets } = await tcpOutside(known, signal)
      return {
        offer: { outside, mapping, streamId: 0 },
        async run(remote, role) {
          const { host, port } = remote.outside
          refuseIp6(host)
          const socket = await punch(remote.outside, localPort, role)
          return new SocketConnection({
            socket,
            remoteAddr: multiaddr(`/ip4/${host}/tcp/${port}/p2p/${role.peer}`),
            direction: role.isInitiator ? 'outbound' : 'inbound',
            log: role.log.newScope('tcp'),
          })
        },
        close() {
          for (const socket of sockets) socket.destroy()
        },
      }
    },
  }
}

async function punch(to: Endpoint, localPort: number, role: PunchRole): Promise<Socket> {
  const { signal, token } = role
  let why = 'no answer'
  while (!signal.aborted) {
    try {
      const socket = await open(to, localPort, signal)
      try {
        await exchangeToken(socket, token, signal)
        return socket
      } catch (thrown) {
        socket.destroy()
        throw thrown
      }
    } catch (thrown) {
      why = messageOf(thrown)
    }
    await systemClock.sleep(randomInt(...PAUSE_MS), signal).catch(() => {})
  }
  throw new ShoalError('peer_unreachable', `no hole for TCP (${why})`, {
    cause: abortReason(signal),
  })
}

function open(to: Endpoint, localPort: number, signal: AbortSignal): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...to, localPort, noDelay: true })
    const limit = systemClock.deadline(CONNECT_MS, 'connecting', signal)
    const give = (error: Error): void => {
      socket.destroy()
      reject(error)
    }
    const onAbort = (): void => give(abortReason(limit))
    limit.addEventListener('abort', onAbort, { once: true })
    socket.once('error', give)
    socket.once('connect', () => {
      limit.removeEventListener('abort', onAbort)
      socket.removeListener('error', give)
      resolve(socket)
    })
  })
}

/** Both sides know by it that the other one has this very connection, and no stranger answers. */
async function exchangeToken(
  socket: Socket,
  token: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const limit = systemClock.deadline(TOKEN_MS, 'the other side', signal)
  await new Promise<void>((resolve, reject) => {
    const settle = (error?: Error): void => {
      socket.removeListener('readable', read)
      socket.removeListener('error', settle)
      socket.removeListener('end', onEnd)
      limit.removeEventListener('abort', onAbort)
      if (error === undefined) resolve()
      else reject(error)
    }
    const onAbort = (): void => settle(abortReason(limit))
    const onEnd = (): void => settle(new Error('it was closed'))
    const read = (): void => {
      // What follows the token stays in the socket for the handshake.
      const bytes: unknown = socket.read(TOKEN_BYTES)
      if (!Buffer.isBuffer(bytes)) return
      settle(bytes.equals(token) ? undefined : new Error('a stranger answered'))
    }
    limit.addEventListener('abort', onAbort, { once: true })
    socket.on('error', settle)
    socket.on('end', onEnd)
    socket.on('readable', read)
    socket.write(token)
  })
}
