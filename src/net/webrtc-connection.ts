/**
 * One reliable, ordered data channel as a wire of libp2p. What passes is encrypted above it as on every other wire, which
 * proves who is there.
 */
import type { AbortOptions } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { AbstractMultiaddrConnectionInit, SendResult } from '@libp2p/utils'
import type { Uint8ArrayList } from 'uint8arraylist'
import { raceSignal } from '../clock.ts'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'

/** Filled up to here; a stack holds more than that itself, and closes a channel at 16 MiB. */
const HIGH_BYTES = 1 << 20
const LOW_BYTES = HIGH_BYTES / 2
/** Not every stack tells when a channel has emptied. */
const LOOK_MS = 2
/** For what is still to be sent, and for the other side's farewell. */
const CLOSE_MS = 2_000

export interface WebRtcConnectionInit extends AbstractMultiaddrConnectionInit {
  peerConnection: RTCPeerConnection
  /** Of that connection, and not open yet: nothing may have come before somebody listens. */
  channel: RTCDataChannel
  clock: Clock
}

/** libp2p lets a transport's wires be made in this way only. */
export class WebRtcConnection extends AbstractMultiaddrConnection {
  readonly #peerConnection: RTCPeerConnection
  readonly #channel: RTCDataChannel
  readonly #clock: Clock
  readonly #opened = Promise.withResolvers<void>()
  readonly #freed = Promise.withResolvers<void>()
  #isDraining = false

  constructor(init: WebRtcConnectionInit) {
    super({
      ...init,
      maxMessageSize: LIMITS.webRtcMessageBytes,
      maxReadBufferLength: LIMITS.webRtcReadBytes,
    })
    const { peerConnection, channel } = init
    this.#peerConnection = peerConnection
    this.#channel = channel
    this.#clock = init.clock
    this.#opened.promise.catch(() => {})
    channel.binaryType = 'arraybuffer'
    channel.bufferedAmountLowThreshold = LOW_BYTES
    channel.addEventListener('open', () => this.#opened.resolve())
    channel.addEventListener('message', ({ data }: MessageEvent<unknown>) => this.#take(data))
    channel.addEventListener('bufferedamountlow', () => this.safeDispatchEvent('drain'))
    channel.addEventListener('close', () => {
      this.#free()
      this.onTransportClosed()
    })
    peerConnection.addEventListener('connectionstatechange', () => {
      if (peerConnection.connectionState !== 'failed') return
      this.abort(new ShoalError('peer_unreachable', 'no answer comes through by WebRTC'))
    })
  }

  /** Resolves when bytes can pass. Rejects when ICE has found no way, or with the signal's reason. */
  async untilOpen(signal: AbortSignal): Promise<void> {
    await raceSignal(this.#opened.promise, signal)
  }

  override sendData(data: Uint8ArrayList): SendResult {
    this.#channel.send(unshared(data.subarray()))
    const canSendMore = this.#channel.bufferedAmount < HIGH_BYTES
    if (!canSendMore) this.#drain().catch((cause: Error) => this.abort(cause))
    return { sentBytes: data.byteLength, canSendMore }
  }

  override async sendClose(options: AbortOptions = {}): Promise<void> {
    const limit = this.#clock.deadline(CLOSE_MS, 'closing a data channel', options.signal)
    try {
      // Bytes that wait are lost with the connection.
      await this.#untilBuffered(0, limit)
      this.#channel.close()
      await raceSignal(this.#freed.promise, limit)
    } catch {
      // A peer that is gone says no farewell.
    } finally {
      this.#free()
    }
  }

  override sendReset(error: Error): void {
    this.#opened.reject(error)
    this.#free()
  }

  /** A data channel cannot be stopped: the windows of yamux stop the sender, and the buffer is bounded. */
  override sendPause(): void {}

  override sendResume(): void {}

  #take(data: unknown): void {
    if (data instanceof ArrayBuffer && data.byteLength <= LIMITS.webRtcMessageBytes) {
      this.onData(new Uint8Array(data))
      return
    }
    this.abort(new ShoalError('message_invalid', 'not a message of bytes, or too long a one'))
  }

  async #drain(): Promise<void> {
    if (this.#isDraining) return
    this.#isDraining = true
    await this.#untilBuffered(LOW_BYTES)
    this.#isDraining = false
    this.safeDispatchEvent('drain')
  }

  async #untilBuffered(bytes: number, signal?: AbortSignal): Promise<void> {
    while (this.#channel.readyState === 'open' && this.#channel.bufferedAmount > bytes) {
      await this.#clock.sleep(LOOK_MS, signal)
    }
  }

  /** Threads and sockets of the stack. */
  #free(): void {
    this.#freed.resolve()
    this.#opened.reject(new ShoalError('peer_unreachable', 'the data channel was closed'))
    this.#peerConnection.close()
  }
}

/** The same bytes: a channel takes none that another thread may change meanwhile. */
function unshared({ buffer, byteOffset, byteLength }: Uint8Array): Uint8Array<ArrayBuffer> {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer, byteOffset, byteLength)
  return new Uint8Array(buffer.slice(byteOffset, byteOffset + byteLength)).slice()
}
