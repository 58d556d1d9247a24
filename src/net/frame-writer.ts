/** The sending half of a frame channel: frames leave together, as fast as the stream takes them. */
import type { Stream } from '@libp2p/interface'
import { encodeFrames, frameBytes } from './frame.ts'
import type { Frame } from './frame.ts'

/** Queued frames are joined up to this before a write: one packet instead of one per small frame. */
const BATCH_BYTES = 64 << 10

/** Long frames go to the muxer in pieces of this size: so much can hold up a frame of another stream. */
const PIECE_BYTES = 256 << 10

/** A frame on its way. Whoever sends it learns from it how far it has come. */
export interface OutgoingFrame extends Frame {
  /** It is in the stream's hands, and may reach the other side. */
  isHanded?: boolean
  /** Called when it has left this node. */
  onFlushed?: ((frame: OutgoingFrame) => void) | undefined
}

export interface FrameWriter {
  /** Throws `limit_exceeded` when the payload is too long. */
  write(frame: OutgoingFrame): void
  queued(): number
  /** Bytes that have left so far, while something waits to leave. */
  progress(): number | undefined
}

/**
 * Waits by the `drain` event for the stream to take more: `stream.onDrain()` of @libp2p/utils 7.4 never waits a second
 * time. What is queued when `ended` fires is lost.
 */
export function createFrameWriter(
  stream: Stream,
  ended: AbortSignal,
  onBroken: (cause: unknown) => void,
): FrameWriter {
  return new StreamWriter(stream, ended, onBroken)
}

class StreamWriter implements FrameWriter {
  readonly #stream: Stream
  readonly #ended: AbortSignal
  readonly #onBroken: (cause: unknown) => void
  #queue: OutgoingFrame[] = []
  /** Handed over, but still in the stream's own buffer. */
  #unflushed: OutgoingFrame[] = []
  #bytesHanded = 0
  #isScheduled = false

  constructor(stream: Stream, ended: AbortSignal, onBroken: (cause: unknown) => void) {
    this.#stream = stream
    this.#ended = ended
    this.#onBroken = onBroken
    // libp2p sends what it holds itself in a microtask after this event.
    stream.addEventListener('drain', () => this.#schedule())
    ended.addEventListener('abort', () => {
      this.#queue = []
      this.#unflushed = []
    })
  }

  write(frame: OutgoingFrame): void {
    frameBytes(frame)
    this.#queue.push(frame)
    this.#schedule()
  }

  queued(): number {
    return this.#queue.length
  }

  progress(): number | undefined {
    const { writeBufferLength } = this.#stream
    if (this.#queue.length === 0 && writeBufferLength === 0) return undefined
    return this.#bytesHanded - writeBufferLength
  }

  #schedule(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    // Later in this turn other handlers finish: their frames leave in the same write.
    queueMicrotask(() => {
      this.#isScheduled = false
      try {
        this.#flush()
      } catch (thrown) {
        this.#onBroken(thrown)
      }
    })
  }

  #flush(): void {
    const stream = this.#stream
    if (this.#ended.aborted || stream.writeBufferLength > 0) return
    this.#settle()
    while (this.#queue.length > 0 && !stream.writableNeedsDrain) {
      // Asked before a frame counts as handed over: one that was not may be sent again on another stream.
      if (stream.writeStatus !== 'writable') throw new Error('it is closed for writing')
      const batch = this.#takeBatch()
      const bytes = encodeFrames(batch)
      for (const frame of batch) frame.isHanded = true
      this.#unflushed = batch
      this.#bytesHanded += bytes.byteLength
      for (let at = 0; at < bytes.byteLength; at += PIECE_BYTES) {
        stream.send(bytes.sublist(at, Math.min(at + PIECE_BYTES, bytes.byteLength)))
      }
      if (stream.writeBufferLength > 0) return
      this.#settle()
    }
  }

  #settle(): void {
    const flushed = this.#unflushed
    this.#unflushed = []
    for (const frame of flushed) frame.onFlushed?.(frame)
  }

  #takeBatch(): OutgoingFrame[] {
    const queue = this.#queue
    let count = 0
    for (let bytes = 0; count < queue.length && bytes < BATCH_BYTES; count++) {
      const frame = queue[count]
      if (frame !== undefined) bytes += frameBytes(frame)
    }
    this.#queue = queue.slice(count)
    return queue.slice(0, count)
  }
}
