/**
 * Frames both ways over one libp2p stream, with back-pressure, a bounded queue and a watchdog.
 *
 * A channel ends once, for one reason: the other side left, this side is done, or the other side broke the protocol
 * (then the stream is reset and counted). Success is never concluded from having written: only a reply says so.
 */
import type { Stream } from '@libp2p/interface'
import { pipe } from 'it-pipe'
import type { Clock } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Metrics } from '../metrics.ts'
import { createFrameWriter } from './frame-writer.ts'
import type { OutgoingFrame } from './frame-writer.ts'
import { createFrameDecoder } from './frame.ts'
import type { Destination, Frame } from './frame.ts'

/** A well-behaved peer never has more frames waiting than it has requests in flight; faults for the excess come on top. */
const QUEUED_FRAMES = 2 * LIMITS.rpcRequestsInFlight

/** Labels of `rpc_streams_dropped_total`. */
export type DropReason = 'malformed' | 'unexpected' | 'stalled' | 'not_reading' | 'too_many'

export interface FrameChannel {
  /** Fires once, with the `ShoalError` that says why. */
  readonly ended: AbortSignal
  /** Queues a frame. Throws `limit_exceeded` when its payload is too long. */
  send(frame: OutgoingFrame): void
  /** See `FrameDecoder`. */
  leaveDestination(id: number): void
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
  destination?: Destination | undefined
  /** The other side broke the protocol, and the channel has been dropped for it. */
  onDrop?: ((reason: DropReason, message: string) => void) | undefined
}

/** Listens before it returns: in libp2p 3 a stream without a listener overflows and is reset. */
export function createFrameChannel(options: FrameChannelOptions): FrameChannel {
  const { stream, clock, metrics, stallMs } = options
  const ending = new AbortController()
  const decoder = createFrameDecoder(options.destination)
  const writer = createFrameWriter(stream, ending.signal, (cause) => {
    end(new ShoalError('peer_unreachable', `the stream broke: ${messageOf(cause)}`, { cause }))
  })

  const channel: FrameChannel = {
    ended: ending.signal,
    send(frame) {
      if (ending.signal.aborted) return
      if (writer.queued() >= QUEUED_FRAMES) {
        channel.drop('not_reading', 'the peer sends requests without reading the replies')
        return
      }
      writer.write(frame)
    },
    leaveDestination: (id) => decoder.leaveDestination(id),
    end,
    drop(reason, message) {
      if (ending.signal.aborted) return
      metrics.add('rpc_streams_dropped_total', 1, reason)
      options.onDrop?.(reason, message)
      end(new ShoalError('peer_unreachable', message, { details: { reason } }))
    },
  }

  function end(fault: ShoalError): void {
    if (ending.signal.aborted) return
    ending.abort(fault)
    stream.abort(fault)
  }

  async function read(): Promise<void> {
    await pipe(stream, decoder.decode, async (batches) => {
      for await (const frames of batches) {
        for (const frame of frames) {
          if (ending.signal.aborted) return
          options.onFrame(frame, channel)
        }
      }
    })
  }

  read().then(
    () => end(new ShoalError('peer_unreachable', 'the peer closed the stream')),
    (thrown: unknown) => {
      const fault = asFault(thrown)
      if (fault.code === 'message_invalid') return channel.drop('malformed', fault.message)
      const message = `the stream broke: ${fault.message}`
      end(new ShoalError('peer_unreachable', message, { cause: thrown }))
    },
  )
  watch(channel, clock, stallMs, {
    reading: () => (decoder.partial ? decoder.bytesReceived : undefined),
    writing: () => writer.progress(),
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
