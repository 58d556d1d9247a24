/**
 * Bodies and answers in bytes, straight from and to Node's streams.
 *
 * Web streams cost about half of the throughput here. A tensor of a gigabyte passes through without ever being whole.
 */
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { abortReason, raceSignal, withDeadline, type Clock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { FaultCode } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'

/** Written at once: what the slowest line takes within `DEADLINES.apiStallMs`. */
const WRITE_BYTES = 256 << 10

/** An answer in bytes. */
export interface Download<T> {
  /** Sent as headers. */
  output: T
  /** Undefined: there is none (status 204). */
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array> | undefined
  /** Length of the content where it is known. */
  bytes?: number
  /** Where it is another than the route's. */
  contentType?: string | undefined
}

/** The request's body. Throws `body_too_large` as soon as it is known to be longer than `bytesMax`. */
export async function* bodyOf(
  incoming: IncomingMessage,
  bytesMax: number,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const declared = Number(incoming.headers['content-length'] ?? 0)
  if (declared > bytesMax) throw tooLarge(bytesMax)
  let bytes = 0
  try {
    const pieces: AsyncIterable<Uint8Array> = incoming.iterator({ destroyOnReturn: false })
    for await (const piece of pieces) {
      if (signal.aborted) throw abortReason(signal)
      bytes += piece.length
      if (bytes > bytesMax) throw tooLarge(bytesMax)
      yield piece
    }
  } catch (cause) {
    if (cause instanceof ShoalError || !incoming.destroyed) throw cause
    throw new ShoalError('aborted', 'the caller hung up in the middle of the body', { cause })
  }
}

function tooLarge(bytesMax: number): ShoalError {
  const code: FaultCode = 'body_too_large'
  return new ShoalError(code, `this body may have ${bytesMax} bytes at most`)
}

/**
 * Sends the whole answer, as fast as the caller reads, however long that takes; one that takes nothing for
 * `DEADLINES.apiStallMs` is gone. What fails after the first byte can only be told by cutting the connection.
 */
export async function sendOctets(
  outgoing: ServerResponse,
  download: Download<unknown>,
  /** With the type of the content. */
  headers: Readonly<Record<string, string>>,
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  const { content, bytes } = download
  if (content === undefined) {
    outgoing.writeHead(204, headers).end()
    return
  }
  const length = bytes === undefined ? {} : { 'content-length': bytes }
  outgoing.writeHead(200, { ...headers, ...length })
  try {
    for await (const piece of content) {
      for (let from = 0; from < piece.length; from += WRITE_BYTES) {
        if (signal.aborted) throw abortReason(signal)
        if (outgoing.write(piece.subarray(from, from + WRITE_BYTES))) continue
        await drained(outgoing, clock, signal)
      }
    }
    outgoing.end()
  } catch (thrown) {
    outgoing.destroy()
    throw thrown
  }
}

async function drained(outgoing: ServerResponse, clock: Clock, signal: AbortSignal): Promise<void> {
  const what = 'taking a part of the answer'
  await withDeadline(clock, DEADLINES.apiStallMs, what, signal, async (limited) => {
    await once(outgoing, 'drain', { signal: limited }).catch((cause: unknown) => {
      throw limited.aborted ? abortReason(limited) : cause
    })
  })
}

/**
 * The same pieces. Throws `timeout` when none comes for `stallMs` although it is asked for: a script that hangs must not
 * keep another from its place. The time that the reader takes does not count.
 */
export async function* flowing(
  pieces: AsyncIterable<Uint8Array>,
  clock: Clock,
  stallMs: number = DEADLINES.apiStallMs,
): AsyncGenerator<Uint8Array, void> {
  const stalled = new AbortController()
  const over = new AbortController()
  let askedMs: number | undefined = clock.now()
  const watch = async (): Promise<void> => {
    for (;;) {
      const idleMs = askedMs === undefined ? 0 : clock.now() - askedMs
      if (idleMs >= stallMs) break
      await clock.sleep(stallMs - idleMs, over.signal)
    }
    const seconds = stallMs / 1000
    stalled.abort(new ShoalError('timeout', `no byte of the body has come for ${seconds} s`))
  }
  // Rejects only when it is told that it is over.
  watch().catch(() => {})
  const iterator = pieces[Symbol.asyncIterator]()
  try {
    for (;;) {
      askedMs = clock.now()
      const next = await raceSignal(iterator.next(), stalled.signal)
      askedMs = undefined
      if (next.done === true) return
      yield next.value
    }
  } finally {
    over.abort()
    // Not waited for: it may be in the middle of what does not come.
    iterator.return?.().catch(() => {})
  }
}

/**
 * The same pieces, whose memory is given back as soon as the next one is asked for: for readers that copy. Left to the
 * garbage collector it has all of this process's heap marked for every 64 MiB, and an upload takes four times as long.
 */
export async function* released(
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void> {
  for await (const piece of pieces) {
    yield piece
    const { buffer } = piece
    // Several pieces may share one buffer, as those of a chunked body do; then it is not this one's to give back.
    if (buffer instanceof ArrayBuffer && buffer.byteLength === piece.byteLength) buffer.transfer(0)
  }
}
