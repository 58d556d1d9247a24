/**
 * A circuit: two streams of a relay joined, so that what one peer writes the other reads.
 *
 * Guarantees. Nothing is dropped or reordered; a reader who is slow slows its writer down and takes no memory beyond a
 * window; when a limit is reached, or either side breaks, both streams are reset, so that both peers see a fault and
 * never a short success.
 */
import type { Stream, StreamMessageEvent } from '@libp2p/interface'
import { Uint8ArrayList } from 'uint8arraylist'
import type { Clock } from '../clock.ts'
import { abortReason } from '../clock.ts'
import { asFault, messageOf, ShoalError } from '../errors.ts'
import type { FairQueue } from './fair-queue.ts'

/** Bytes in one direction that wait at the relay, above which the writer is paused. */
const WAITING_BYTES = 256 << 10

export interface CircuitEnd {
  peer: string
  stream: Stream
}

export interface CircuitOptions {
  from: CircuitEnd
  to: CircuitEnd
  /** Of both directions together. */
  maxBytes: number
  maxMs: number
  queue: FairQueue
  clock: Clock
  signal: AbortSignal
  onBytes: (count: number) => void
}

/** Resolves with the reason when the circuit has ended: undefined for an orderly end. Never rejects. */
export async function joinCircuit(options: CircuitOptions): Promise<ShoalError | undefined> {
  const { from, to, maxBytes, maxMs, clock } = options
  const ending = new AbortController()
  let bytesLeft = maxBytes
  const limit = clock.deadline(maxMs, 'the relayed connection', options.signal)
  const signal = AbortSignal.any([limit, ending.signal])

  const count = (bytes: number): void => {
    bytesLeft -= bytes
    options.onBytes(bytes)
    if (bytesLeft >= 0) return
    ending.abort(
      new ShoalError('limit_exceeded', `a relayed connection carries ${maxBytes} bytes at most`),
    )
  }
  try {
    await Promise.all([
      carry(from, to, options.queue, signal, count),
      carry(to, from, options.queue, signal, count),
    ])
    return undefined
  } catch (thrown) {
    const fault = signal.aborted ? abortReason(signal) : asFault(thrown)
    for (const { stream } of [from, to]) stream.abort(fault)
    return fault instanceof ShoalError ? fault : asFault(fault)
  } finally {
    ending.abort()
  }
}

/** One direction, until the writer has closed it and all has been handed on. Rejects when a stream breaks or the signal fires. */
function carry(
  from: CircuitEnd,
  to: CircuitEnd,
  queue: FairQueue,
  signal: AbortSignal,
  count: (bytes: number) => void,
): Promise<void> {
  const source = from.stream
  const target = to.stream
  let queuedBytes = 0
  let isEnded = false
  let isFinishing = false
  return new Promise((resolve, reject) => {
    const fail = (why: unknown): void => {
      reject(new ShoalError('peer_unreachable', `the relayed connection broke: ${messageOf(why)}`))
    }
    const proceed = (): void => {
      const waiting = queuedBytes + target.writeBufferLength
      if (source.readStatus === 'readable' && waiting > WAITING_BYTES) source.pause()
      if (source.readStatus === 'paused' && waiting <= WAITING_BYTES) source.resume()
      if (!isEnded || queuedBytes > 0 || isFinishing) return
      isFinishing = true
      target.close({ signal }).then(resolve, fail)
    }
    const forward = (piece: Uint8ArrayList): void => {
      if (signal.aborted) return
      queuedBytes -= piece.byteLength
      try {
        target.send(piece)
        proceed()
      } catch (thrown) {
        fail(thrown)
      }
    }
    source.addEventListener('message', ({ data }: StreamMessageEvent) => {
      if (signal.aborted) return
      count(data.byteLength)
      queuedBytes += data.byteLength
      queue.push(from.peer, new Uint8ArrayList(data), forward)
      proceed()
    })
    source.addEventListener('end', () => {
      // A reset ends a stream too, and must not look like an orderly end to the other side.
      if (source.remoteWriteStatus !== 'closed' || isBroken(source)) return
      isEnded = true
      proceed()
    })
    // libp2p sends what it holds in a microtask after this event; when that was all, no other event follows.
    target.addEventListener('drain', () => queueMicrotask(proceed))
    source.addEventListener('close', ({ error }) => {
      if (error !== undefined || !isEnded) fail(error ?? 'it was closed early')
    })
    target.addEventListener('close', ({ error }) => {
      if (error !== undefined || !isFinishing) fail(error ?? 'it was closed early')
    })
    signal.addEventListener('abort', () => reject(abortReason(signal)), { once: true })
  })
}

function isBroken({ status }: Stream): boolean {
  return status === 'aborted' || status === 'reset'
}
