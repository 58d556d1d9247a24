/**
 * Frames both ways over one libp2p stream, with back-pressure, a bounded queue and a watchdog.
 *
 * A channel ends once, for one reason: the other side left, this side is done, or the other side broke the protocol
 * (then the stream is reset and counted). Success is never concluded from having written: only a reply says so.
 */
import type { Stream } from '@libp2p/interface'
import { pipe } from 'it-pipe'
import { Uint8ArrayList } from 'uint8arraylist'
import type { Clock } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Metrics } from '../metrics.ts'
import { createFrameDecoder, encodeFrame } from './frame.ts'
import type { Frame } from './frame.ts'

/** Queued frames are joined up to this before a write: one noise packet instead of one per small frame. */
const WRITE_BYTES = 64 << 10

/** A well-behaved peer never has more frames waiting than it has requests in flight; faults for the excess come on top. */
const QUEUED_FRAMES = 2 * LIMITS.rpcRequestsInFlight

/** Labels of `rpc_streams_dropped_total`. */
export type DropReason = 'malformed' | 'unexpected' | 'stalled' | 'not_reading' | 'too_many'

export interface FrameChannel {
  /** Fires once, with the `ShoalError` that says why. */
  readonly ended: AbortSignal
  /** Queues a frame. `onHanded`: it is in the stream's hands and may reach the other side; `onFlushed`: it left this node. */
  send(frame: Frame, onHanded?: () => void, onFlushed?: () => void): void
  /** Ends the channel; what is queued is lost. */
  readonly end: (fault: ShoalError) => void
  /** Ends the channel because the other side broke the protocol. */
  drop(reason: DropReason, message: string): void
}

export interface FrameChannelOptions {
  stream: Stream
  clock: Clock
  metrics: Metrics
  stallMs: number
  /** Called for each frame in order; must not throw. */
  onFrame: (frame: Frame, channel: FrameChannel) => void
}

interface Outgoing {
  bytes: Uint8ArrayList
  onHanded: (() => void) | undefined
  onFlushed: (() => void) | undefined
}

/** Listens before it returns: in libp2p 3 a stream without a listener overflows and is reset. */
export function createFrameChannel(options: FrameChannelOptions): FrameChannel {
  const { stream, clock, metrics, stallMs } = options
  const ending = new AbortController()
  const decoder = createFrameDecoder()
  const writer = createFrameWriter(stream, ending.signal, (cause) => {
    end(new ShoalError('peer_unreachable', `the stream broke: ${messageOf(cause)}`, { cause }))
  })

  const channel: FrameChannel = {
    ended: ending.signal,
    send(frame, onHanded, onFlushed) {
      if (ending.signal.aborted) return
      if (writer.queued() >= QUEUED_FRAMES) {
        channel.drop('not_reading', 'the peer sends requests without reading the replies')
        return
      }
      writer.write({ bytes: encodeFrame(frame), onHanded, onFlushed })
    },
    end,
    drop(reason, message) {
      if (ending.signal.aborted) return
      metrics.add('rpc_streams_dropped_total', 1, reason)
      end(new ShoalError('peer_unreachable', message, { details: { reason } }))
    },
  }

  function end(fault: ShoalError): void {
    if (ending.signal.aborted) return
    ending.abort(fault)
    stream.abort(fault)
  }

  async function read(): Promise<void> {
    await pipe(stream, decoder.decode, async (frames) => {
      for await (const frame of frames) {
        if (ending.signal.aborted) return
        options.onFrame(frame, channel)
      }
    })
  }

  read().then(
    () => end(new ShoalError('peer_unreachable', 'the peer closed the stream')),
    (thrown: unknown) => {
      const fault = asFault(thrown)
      if (fault.code === 'message_invalid') channel.drop('malformed', fault.message)
      else
        end(
          new ShoalError('peer_unreachable', `the stream broke: ${fault.message}`, {
            cause: thrown,
          }),
        )
    },
  )
  watch(channel, clock, stallMs, {
    reading: () => (decoder.partial ? decoder.bytesReceived : undefined),
    writing: writer.progress,
  }).catch(() => {})
  return channel
}

/** Bytes moved so far while something is half done, else undefined. */
type Progress = () => number | undefined

/** Cuts the stream when a half-done message makes no progress from one look to the next. */
async function watch(
  channel: FrameChannel,
  clock: Clock,
  stallMs: number,
  progress: { reading: Progress; writing: Progress },
): Promise<void> {
  let last: { reading: number | undefined; writing: number | undefined } | undefined
  for (;;) {
    await clock.sleep(stallMs, channel.ended)
    const now = { reading: progress.reading(), writing: progress.writing() }
    if (now.reading !== undefined && now.reading === last?.reading) {
      channel.drop('stalled', `the peer stopped in the middle of a message for ${stallMs} ms`)
    }
    if (now.writing !== undefined && now.writing === last?.writing) {
      channel.drop('not_reading', `the peer did not read for ${stallMs} ms`)
    }
    last = now
  }
}

interface FrameWriter {
  write(outgoing: Outgoing): void
  queued(): number
  progress: Progress
}

/**
 * Hands frames to the stream as fast as it takes them. Waits for the stream's own buffer to be empty by the `drain`
 * event: `stream.onDrain()` of @libp2p/utils 7.4 never waits a second time.
 */
function createFrameWriter(
  stream: Stream,
  ended: AbortSignal,
  onBroken: (cause: unknown) => void,
): FrameWriter {
  const queue: Outgoing[] = []
  let bytesHanded = 0
  let running = false
  let wake: (() => void) | undefined
  stream.addEventListener('drain', () => wake?.())
  ended.addEventListener('abort', () => {
    queue.length = 0
    wake?.()
  })

  async function run(): Promise<void> {
    try {
      // Later in this turn of the loop other handlers finish: their frames leave in the same write.
      await Promise.resolve()
      while (queue.length > 0 && !ended.aborted) await writeBatch(takeBatch(queue))
    } finally {
      running = false
    }
  }

  async function writeBatch(batch: readonly Outgoing[]): Promise<void> {
    // Asked before a frame counts as handed over: a frame that was not may be sent again on another stream.
    if (stream.writeStatus !== 'writable') throw new Error('it is closed for writing')
    const bytes = new Uint8ArrayList()
    for (const outgoing of batch) {
      bytes.append(outgoing.bytes)
      outgoing.onHanded?.()
    }
    bytesHanded += bytes.byteLength
    stream.send(bytes)
    while (stream.writeBufferLength > 0 && !ended.aborted) {
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    }
    for (const outgoing of batch) outgoing.onFlushed?.()
  }

  return {
    write(outgoing) {
      queue.push(outgoing)
      if (running) return
      running = true
      run().catch(onBroken)
    },
    queued: () => queue.length,
    progress: () =>
      queue.length > 0 || stream.writeBufferLength > 0
        ? bytesHanded - stream.writeBufferLength
        : undefined,
  }
}

function takeBatch(queue: Outgoing[]): Outgoing[] {
  let count = 0
  let bytes = 0
  while (count < queue.length && (count === 0 || bytes < WRITE_BYTES)) {
    bytes += queue[count]?.bytes.byteLength ?? 0
    count++
  }
  return queue.splice(0, count)
}
