/**
 * `/tls/1.0.0`: TLS 1.3 between libp2p peers (https://github.com/libp2p/specs/blob/master/tls/tls.md), on the native
 * handle of a TCP socket where there is one.
 *
 * There, encrypting happens in C++ between the socket and its handle, three times as fast as noise. Every other
 * connection (WebSocket, relayed) is wrapped in a JS stream for Node's TLS, which is still faster than noise in Node. A
 * peer without TLS, such as a browser, gets noise in the negotiation before this.
 */
import { once } from 'node:events'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { connect, createSecureContext, TLSSocket } from 'node:tls'
import type { SecureContext } from 'node:tls'
import type {
  ConnectionEncrypter,
  MessageStream,
  PeerId,
  PrivateKey,
  SecureConnectionOptions,
  SecuredConnection,
  StreamMessageEvent,
  StreamMuxerFactory,
} from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import { Uint8ArrayList } from 'uint8arraylist'
import { abortReason, raceSignal, systemClock, withDeadline } from '../../src/clock.ts'
import type { Clock } from '../../src/clock.ts'
import { asFault, ShoalError } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import { silentLogger } from '../../src/log.ts'
import type { Logger } from '../../src/log.ts'
import type { EncrypterFactories } from '../../src/net/libp2p-node.ts'
import { messageStreamDuplex } from './message-stream-duplex.ts'
import { createCertificate, verifyCertificate } from './tls-certificate.ts'
import { TlsStream } from './tls-stream.ts'

const PROTOCOL = '/tls/1.0.0'
/** By ALPN: the muxer is negotiated afterwards. */
const NO_EARLY_MUXER = 'libp2p'
/** Bytes that a socket takes before it asks to wait: a few chunks' worth, so that the pipe never runs empty. */
const SOCKET_BUFFER_BYTES = 512 << 10

export interface TlsOptions {
  logger?: Logger | undefined
  clock?: Clock | undefined
}

/** TLS where the other side knows it, else noise. */
export function nodeEncrypters(options: TlsOptions = {}): EncrypterFactories {
  return [tls(options), noise()]
}

interface TlsComponents {
  privateKey: PrivateKey
  /** Not there yet when the encrypter is made. */
  upgrader: { getStreamMuxers(): Map<string, StreamMuxerFactory> }
}

/** A factory for libp2p's `connectionEncrypters`. */
export function tls(options: TlsOptions = {}): (components: TlsComponents) => ConnectionEncrypter {
  const { logger = silentLogger, clock = systemClock } = options
  return (components) => {
    // One certificate per process: another per connection would cost two signatures and prove nothing more.
    const context = createCertificate(components.privateKey).then((certificate) =>
      createSecureContext({ ...certificate, minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' }),
    )
    // Whoever needs it hears of its fault.
    context.catch(() => {})
    const takeSocket = createSocketTaker(logger)

    async function secure(
      isServer: boolean,
      connection: MessageStream,
      { signal, remotePeer, skipStreamMuxerNegotiation = false }: SecureConnectionOptions = {},
    ): Promise<SecuredConnection> {
      const muxers = skipStreamMuxerNegotiation
        ? new Map<string, StreamMuxerFactory>()
        : components.upgrader.getStreamMuxers()
      const secureContext = await context
      const native = await takeSocket(connection)
      const socket = startTls(native ?? messageStreamDuplex(connection), {
        isServer,
        secureContext,
        ALPNProtocols: [...muxers.keys(), NO_EARLY_MUXER],
      })
      try {
        const peer = await withDeadline(
          clock,
          DEADLINES.dialMs,
          'the TLS handshake',
          signal,
          (limit) => handshake(socket, connection, limit),
        )
        if (remotePeer?.equals(peer) === false) {
          throw new ShoalError('peer_unreachable', `${peer.toString()} answers instead`)
        }
        if (native !== undefined) closeWithTls(connection, socket)
        const streamMuxer = muxers.get(socket.alpnProtocol || NO_EARLY_MUXER)
        return {
          remotePeer: peer,
          connection: new TlsStream({ connection, socket, native }),
          ...(streamMuxer !== undefined && { streamMuxer }),
        }
      } catch (thrown) {
        socket.destroy()
        connection.abort(asFault(thrown))
        throw thrown
      }
    }

    return {
      protocol: PROTOCOL,
      secureInbound: (connection, secureOptions) => secure(true, connection, secureOptions),
      secureOutbound: (connection, secureOptions) => secure(false, connection, secureOptions),
    }
  }
}

/**
 * Takes the socket away from the TCP connection that reads from it: no other way leads to its handle. Undefined for
 * other connections, and, with one line in the log, for a TCP connection that is not built as this expects.
 */
function createSocketTaker(
  logger: Logger,
): (connection: MessageStream) => Promise<Socket | undefined> {
  let hasWarned = false
  return async (connection) => {
    const socket: unknown = 'socket' in connection ? connection.socket : undefined
    if (!(socket instanceof Socket)) return undefined
    const readers = ['data', 'drain'].map((event) => socket.listenerCount(event))
    const isExpected =
      connection instanceof AbstractMultiaddrConnection &&
      readers.every((count) => count === 1) &&
      socket.listenerCount('readable') === 0
    if (!isExpected) {
      if (!hasWarned) logger.warn('tls_native_unavailable', { readers })
      hasWarned = true
      return undefined
    }
    socket.pause()
    socket.removeAllListeners('data').removeAllListeners('drain')
    const bytes = await takeReadBuffer(connection)
    if (bytes.byteLength > 0) socket.unshift(bytes.subarray())
    return socket
  }
}

/** What was read ahead in the negotiation: a listener gets it in a microtask. */
async function takeReadBuffer(connection: MessageStream): Promise<Uint8ArrayList> {
  const bytes = new Uint8ArrayList()
  if (connection.readBufferLength === 0) return bytes
  const onMessage = ({ data }: StreamMessageEvent): void => bytes.append(data)
  connection.addEventListener('message', onMessage)
  await Promise.resolve()
  connection.removeEventListener('message', onMessage)
  return bytes
}

/** Closing the connection alone would drop what the TLS socket still has to write, its farewell included. */
function closeWithTls(connection: MessageStream, socket: TLSSocket): void {
  if (!(connection instanceof AbstractMultiaddrConnection)) return
  connection.sendClose = async (options) => {
    if (socket.closed) return
    socket.destroySoon()
    await once(socket, 'close', options)
  }
}

interface StartOptions {
  isServer: boolean
  secureContext: SecureContext
  ALPNProtocols: string[]
}

function startTls(below: Duplex, { isServer, ...shared }: StartOptions): TLSSocket {
  // The certificate is checked by `handshake`: no authority signs it.
  const options = {
    ...shared,
    rejectUnauthorized: false,
    highWaterMark: SOCKET_BUFFER_BYTES,
  }
  return isServer
    ? new TLSSocket(below, { ...options, isServer, requestCert: true })
    : connect({ ...options, socket: below })
}

/** The peer that the other side proves to be. Rejects when it proves nothing, or goes. */
async function handshake(
  socket: TLSSocket,
  connection: MessageStream,
  signal: AbortSignal,
): Promise<PeerId> {
  await new Promise<void>((resolve, reject) => {
    const onClose = (): void => reject(new ShoalError('peer_unreachable', 'the peer hung up'))
    const onAbort = (): void => reject(abortReason(signal))
    socket.once('secure', resolve)
    // Stays: an error without a listener would end the process.
    socket.on('error', reject)
    socket.once('close', onClose)
    connection.addEventListener('close', onClose)
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
    if (connection.status !== 'open') onClose()
  })
  const certificate = socket.getPeerCertificate().raw
  // Sessions are never offered again, so that a peer which resumes one does something else than libp2p.
  if (certificate === undefined || socket.isSessionReused()) {
    throw new ShoalError('message_invalid', 'a peer shows no certificate')
  }
  return raceSignal(verifyCertificate(certificate), signal)
}
