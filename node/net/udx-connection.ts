/**
 * A UDX stream as a wire of libp2p. UDX brings reliability, order and congestion control (BBR) to UDP; what passes is
 * encrypted above it, as on every other wire.
 */
import { once } from 'node:events'
import type { AbortOptions } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { AbstractMultiaddrConnectionInit, SendResult } from '@libp2p/utils'
import type { UdxSocket, UdxStream } from 'udx-native'
import type { Uint8ArrayList } from 'uint8arraylist'
import { systemClock } from '../../src/clock.ts'

/** NATs forget a UDP port after half a minute of silence, some earlier. */
const KEEP_ALIVE_MS = 10_000
/** For the other side's farewell. */
const CLOSE_MS = 2_000

export class UdxConnection extends AbstractMultiaddrConnection {
  readonly #stream: UdxStream

  /** `socket` is closed with the stream. */
  constructor(init: AbstractMultiaddrConnectionInit & { stream: UdxStream; socket: UdxSocket }) {
    super(init)
    const { stream, socket } = init
    this.#stream = stream
    stream.setKeepalive(KEEP_ALIVE_MS)
    stream.on('data', (bytes: Buffer) => this.onData(bytes))
    stream.on('drain', () => this.safeDispatchEvent('drain'))
    stream.on('error', (error: Error) => this.abort(error))
    stream.once('end', () => {
      this.onRemoteCloseWrite()
      this.close().catch((cause: Error) => this.abort(cause))
    })
    stream.once('close', () => {
      this.onTransportClosed()
      socket.close().catch(() => {})
    })
  }

  override sendData(data: Uint8ArrayList): SendResult {
    let canSendMore = true
    for (const bytes of data) canSendMore = this.#stream.write(bytes)
    return { sentBytes: data.byteLength, canSendMore }
  }

  override async sendClose(options: AbortOptions = {}): Promise<void> {
    if (this.#stream.destroyed) return
    const signal = systemClock.deadline(CLOSE_MS, 'closing a stream', options.signal)
    this.#stream.end()
    // A peer that is gone says no farewell.
    await once(this.#stream, 'close', { signal }).catch(() => {})
    this.#stream.destroy()
  }

  override sendReset(): void {
    this.#stream.destroy()
  }

  override sendPause(): void {
    this.#stream.pause()
  }

  override sendResume(): void {
    this.#stream.resume()
  }
}
