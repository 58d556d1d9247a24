/** Server-sent events from the history: one frame per event, comments in silence, a `gap` frame for what was missed. */
import { raceSignal } from '../../src/clock.ts'
import type { Clock } from '../../src/clock.ts'
import type { EventHistory } from './event-history.ts'

export interface EventStreamOptions {
  history: EventHistory
  clock: Clock
  heartbeatMs: number
  /** `Last-Event-ID` of a reader that resumes; without it only new events are sent. */
  lastEventId: string | undefined
  /** Ends the stream. */
  signal: AbortSignal
  /** Called once when the reader has gone or `signal` has fired. */
  onEnd: () => void
}

export function eventStream(options: EventStreamOptions): ReadableStream<Uint8Array> {
  const cancelled = new AbortController()
  const signal = AbortSignal.any([options.signal, cancelled.signal])
  if (signal.aborted) options.onEnd()
  else signal.addEventListener('abort', options.onEnd, { once: true })
  const frames = eventFrames({ ...options, signal })
  const encoder = new TextEncoder()
  return new ReadableStream(
    {
      // Called only when the reader has room, so a slow one holds back its own position and nothing else.
      async pull(controller) {
        const { done, value } = await frames.next()
        if (done === true) controller.close()
        else controller.enqueue(encoder.encode(value))
      },
      cancel: () => cancelled.abort(),
    },
    { highWaterMark: 1 },
  )
}

async function* eventFrames(options: EventStreamOptions): AsyncGenerator<string, void> {
  const { history, clock, signal, lastEventId } = options
  const resumed = lastEventId === undefined ? history.newest() : history.numberOf(lastEventId)
  // After a restart the reader gets all that is kept.
  let position = resumed ?? 0
  // The id lets a reader resume even when the connection breaks before its first event.
  yield `retry: 1000\nid: ${history.idOf(position)}\n\n`
  if (resumed === undefined) yield gapFrame(null)
  while (!signal.aborted) {
    const { events, missed } = history.since(position)
    if (missed > 0) yield gapFrame(missed)
    for (const { number, event } of events) {
      position = number
      yield `id: ${history.idOf(number)}\ndata: ${JSON.stringify(event)}\n\n`
    }
    if (events.length > 0) continue
    const silence = clock.deadline(options.heartbeatMs, 'silence', signal)
    const woken = await raceSignal(history.wait(position, silence), silence).then(
      () => true,
      () => false,
    )
    if (!woken && !signal.aborted) yield ': heartbeat\n\n'
  }
}

/** `missed`: null where nobody knows. */
function gapFrame(missed: number | null): string {
  return `event: gap\ndata: ${JSON.stringify({ missed })}\n\n`
}
