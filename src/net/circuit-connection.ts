/** A stream of a relay as the wire of a connection to the peer behind it. */
import type { AbortOptions, Stream } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { AbstractMultiaddrConnectionInit, SendResult } from '@libp2p/utils'
import type { Uint8ArrayList } from 'uint8arraylist'

export interface CircuitConnectionInit extends AbstractMultiaddrConnectionInit {
  stream: Stream
}

/** libp2p lets a transport's wires be made in this way only. */
export class CircuitConnection extends AbstractMultiaddrConnection {
  readonly #stream: Stream

  constructor(init: CircuitConnectionInit) {
    super(init)
    const { stream } = init
    this.#stream = stream
    stream.addEventListener('message', ({ data }) => this.onData(data))
    stream.addEventListener('drain', () => this.safeDispatchEvent('drain'))
    // A connection has no half: when one side has said all, it is over.
    stream.addEventListener('remoteCloseWrite', () => {
      this.onRemoteCloseWrite()
      this.close().catch((cause: Error) => this.abort(cause))
    })
    stream.addEventListener('close', ({ error }) => this.onTransportClosed(error))
  }

  override sendData(data: Uint8ArrayList): SendResult {
    return { sentBytes: data.byteLength, canSendMore: this.#stream.send(data) }
  }

  override async sendClose(options?: AbortOptions): Promise<void> {
    await this.#stream.close(options)
  }

  override sendReset(error: Error): void {
    this.#stream.abort(error)
  }

  override sendPause(): void {
    this.#stream.pause()
  }

  override sendResume(): void {
    this.#stream.resume()
  }
}
