/** A TCP socket that this node has connected itself, as a wire of libp2p. */
import { once } from 'node:events'
import type { Socket } from 'node:net'
import type { AbortOptions } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { AbstractMultiaddrConnectionInit, SendResult } from '@libp2p/utils'
import type { Uint8ArrayList } from 'uint8arraylist'

/** As libp2p's own TCP: its pings come every half minute, so that this much silence means death. */
const INACTIVITY_MS = 120_000

export class SocketConnection extends AbstractMultiaddrConnection {
  /** TLS takes it to work on its native handle (`tls.ts`). */
  readonly socket: Socket

  constructor(init: AbstractMultiaddrConnectionInit & { socket: Socket }) {
    super(init)
    const { socket } = init
    this.socket = socket
    socket.setTimeout(INACTIVITY_MS)
    socket.on('data', (bytes) => this.onData(bytes))
    socket.on('drain', () => this.safeDispatchEvent('drain'))
    socket.on('error', (error) => this.abort(error))
    socket.once('timeout', () => this.abort(new Error('nothing was heard for too long')))
    socket.once('end', () => this.onTransportClosed())
    socket.once('close', () => this.onTransportClosed())
  }

  override sendData(data: Uint8ArrayList): SendResult {
    let canSendMore = true
    // The socket takes what it is given, and tells when it would rather have had less.
    for (const bytes of data) canSendMore = this.socket.write(bytes)
    return { sentBytes: data.byteLength, canSendMore }
  }

  override async sendClose(options?: AbortOptions): Promise<void> {
    if (this.socket.destroyed) return
    this.socket.destroySoon()
    await once(this.socket, 'close', options)
  }

  override sendReset(): void {
    if (this.socket.writableEnded) this.socket.destroy()
    else this.socket.resetAndDestroy()
  }

  override sendPause(): void {
    this.socket.pause()
  }

  override sendResume(): void {
    this.socket.resume()
  }
}
