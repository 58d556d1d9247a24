/**
 * One reliable, ordered data channel as a wire of libp2p. What passes is encrypted above it as on every other wire, which
 * proves who is there.
 *
 * A message of bytes is a piece of the wire. A text is a number, the bytes that the other side has taken so far, from
 * which the sender learns how much may be under way (`send-window.ts`); or it asks for that number.
 */
import type { AbortOptions } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { AbstractMultiaddrConnectionInit, SendResult } from '@libp2p/utils'
import type { Uint8ArrayList } from 'uint8arraylist'
import { raceSignal } from '../clock.ts'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { createSendWindow } from './send-window.ts'
import type { SendWindow } from './send-window.ts'

/** Taken since the other side was last told: less than its smallest window. */
const TOLD_BYTES = 16 << 10
/** Asks for that number at once. */
const ASK = '?'
const LOOK_MS = 10
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
  readonly #window: SendWindow
  #received = 0
  #told = 0
  #isFull = false

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
    this.#window = createSendWindow(init.clock)
    this.#opened.promise.catch(() => {})
    channel.binaryType = 'arraybuffer'
    channel.addEventListener('open', () => this.#opened.resolve())
    channel.addEventListener('message', ({ data }: MessageEvent<unknown>) => this.#take(data))
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
    // Others than the window may ask to go on: a cap on uploads that has been raised again.
    const sentBytes = this.#window.isOpen() ? data.byteLength : 0
    if (sentBytes > 0) {
      this.#channel.send(unshared(data.subarray()))
      this.#window.sent(sentBytes)
    }
    this.#isFull = !this.#window.isOpen()
    return { sentBytes, canSendMore: !this.#isFull }
  }

  override async sendClose(options: AbortOptions = {}): Promise<void> {
    const limit = this.#clock.deadline(CLOSE_MS, 'closing a data channel', options.signal)
    try {
      // A stack throws away what it has not sent yet.
      await this.#untilTaken(limit)
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

  /** A data channel cannot be stopped, but its sender: it hears no more of what is taken. */
  override sendPause(): void {}

  override sendResume(): void {
    this.#tell(TOLD_BYTES)
  }

  #take(data: unknown): void {
    if (typeof data === 'string' && /^\d{1,16}$/.test(data) && this.#window.taken(Number(data))) {
      if (!this.#isFull || !this.#window.isOpen()) return
      this.#isFull = false
      this.safeDispatchEvent('drain')
      return
    }
    if (data === ASK) {
      this.#tell(0)
      return
    }
    if (!(data instanceof ArrayBuffer) || data.byteLength > LIMITS.webRtcMessageBytes) {
      this.abort(new ShoalError('message_invalid', 'no piece of a wire, or too long a one'))
      return
    }
    this.#received += data.byteLength
    this.onData(new Uint8Array(data))
    this.#tell(TOLD_BYTES)
  }

  /** If at least so many bytes are new. */
  #tell(newBytes: number): void {
    const isDue = this.#received - this.#told >= newBytes && this.readStatus !== 'paused'
    if (!isDue || this.#channel.readyState !== 'open') return
    this.#told = this.#received
    this.#channel.send(String(this.#received))
  }

  async #untilTaken(signal: AbortSignal): Promise<void> {
    if (this.#channel.readyState === 'open') this.#channel.send(ASK)
    while (this.#channel.readyState === 'open' && this.#window.bytesInFlight() > 0) {
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
