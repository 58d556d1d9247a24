/** Reads server-sent events and reconnects where it left off. */
import { abortReason, raceSignal } from '../../src/clock.ts'
import type { Clock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import { runEventSchema } from '../../src/run/view.ts'
import type { RunEvent } from '../../src/run/view.ts'

/** One event is < 64 KiB: its longest field is a list of partners. */
const FRAME_CHARACTERS_MAX = 64 << 10
const RECONNECT_MS = 1_000
/** Heartbeats come so often; three missing ones mean that the connection is dead. */
const SILENCE_MS = 3 * DEADLINES.eventHeartbeatMs

export interface EventReaderOptions {
  clock: Clock
  signal: AbortSignal
  open: (
    lastEventId: string | undefined,
    signal: AbortSignal,
  ) => Promise<ReadableStream<Uint8Array>>
}

interface Frame {
  id: string | undefined
  event: string | undefined
  data: string
}

export async function* readEvents(options: EventReaderOptions): AsyncGenerator<RunEvent, void> {
  const { clock, signal } = options
  let lastEventId: string | undefined
  while (!signal.aborted) {
    const connection = new AbortController()
    const attempt = AbortSignal.any([signal, connection.signal])
    try {
      const opening = clock.deadline(DEADLINES.apiMs, 'opening the event stream', attempt)
      const body = await raceSignal(options.open(lastEventId, attempt), opening)
      for await (const frame of readFrames(body, clock, attempt)) {
        lastEventId = frame.id ?? lastEventId
        const event = eventOf(frame)
        if (event !== undefined) yield event
      }
    } catch (cause) {
      if (signal.aborted) return
      // A daemon that is gone or refuses will not come back by asking again; a broken connection may.
      if (cause instanceof ShoalError && cause.code !== 'timeout') throw cause
    } finally {
      connection.abort()
    }
    await clock.sleep(RECONNECT_MS, signal).catch(() => {})
  }
}

/** Frames without data only carry ids; `gap` frames and events of newer versions are passed over. */
function eventOf(frame: Frame): RunEvent | undefined {
  if (frame.event !== undefined || frame.data === '') return undefined
  return runEventSchema.safeParse(JSON.parse(frame.data)).data
}

async function* readFrames(
  body: ReadableStream<Uint8Array>,
  clock: Clock,
  signal: AbortSignal,
): AsyncGenerator<Frame, void> {
  const reader = body.getReader()
  const decoder = new TextDecoder()
  let text = ''
  try {
    while (true) {
      const silence = clock.deadline(SILENCE_MS, 'the event stream', signal)
      const { done, value } = await raceSignal(reader.read(), silence)
      if (done) return
      text += decoder.decode(value, { stream: true })
      const frames = text.split('\n\n')
      text = frames.pop() ?? ''
      if (text.length > FRAME_CHARACTERS_MAX) {
        throw new ShoalError('message_invalid', 'an event of the daemon is too long')
      }
      for (const frame of frames) yield parseFrame(frame)
    }
  } catch (cause) {
    if (signal.aborted) throw abortReason(signal)
    throw cause
  } finally {
    await reader.cancel().catch(() => {})
  }
}

function parseFrame(text: string): Frame {
  const frame: Frame = { id: undefined, event: undefined, data: '' }
  for (const line of text.split('\n')) {
    const colon = line.indexOf(': ')
    const value = line.slice(colon + 2)
    const field = line.slice(0, Math.max(0, colon))
    if (field === 'id') frame.id = value
    if (field === 'event') frame.event = value
    if (field === 'data') frame.data = value
  }
  return frame
}
