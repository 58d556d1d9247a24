import { describe, expect, test } from 'vitest'
import { createEventHistory } from '../../../../node/api/event-history.ts'
import { readEvents } from '../../../../node/api/event-reader.ts'
import { eventStream } from '../../../../node/api/event-stream.ts'
import { systemClock } from '../../../../src/clock.ts'
import type { Clock } from '../../../../src/clock.ts'
import type { RunEvent } from '../../../../src/run/view.ts'

/** Reconnecting need not take a second here. */
const hastyClock: Clock = { ...systemClock, sleep: (_, signal) => systemClock.sleep(1, signal) }
const HEARTBEAT_MS = 10_000

const event = (outerStep: number): RunEvent => ({
  type: 'validation',
  run: 'bafy',
  outerStep,
  loss: 2,
})

const never = new AbortController().signal

async function readAll(stream: ReadableStream<Uint8Array>): Promise<string> {
  return await new Response(stream).text()
}

describe('the event stream', () => {
  test('begins with the newest position, then sends what happens', async () => {
    const history = createEventHistory()
    history.append(event(1))
    const end = new AbortController()
    let ends = 0
    const text = readAll(
      eventStream({
        history,
        clock: systemClock,
        heartbeatMs: HEARTBEAT_MS,
        lastEventId: undefined,
        signal: end.signal,
        onEnd: () => ends++,
      }),
    )
    await systemClock.sleep(5)
    history.append(event(2))
    history.append(event(3))
    await systemClock.sleep(5)
    end.abort()
    expect(await text).toBe(
      `retry: 1000\nid: ${history.idOf(1)}\n\n` +
        `id: ${history.idOf(2)}\ndata: ${JSON.stringify(event(2))}\n\n` +
        `id: ${history.idOf(3)}\ndata: ${JSON.stringify(event(3))}\n\n`,
    )
    expect(ends).toBe(1)
  })

  test('tells a reader that resumes too late how much it missed', async () => {
    const history = createEventHistory(2)
    const first = history.idOf(0)
    for (let step = 1; step <= 5; step++) history.append(event(step))
    const end = new AbortController()
    const text = readAll(
      eventStream({
        history,
        clock: systemClock,
        heartbeatMs: HEARTBEAT_MS,
        lastEventId: first,
        signal: end.signal,
        onEnd: () => {},
      }),
    )
    await systemClock.sleep(5)
    end.abort()
    expect(await text).toContain('event: gap\ndata: {"missed":3}\n\n')
    expect(await text).toContain(JSON.stringify(event(5)))
  })

  test('tells a reader that resumes after a restart that nobody knows what it missed', async () => {
    const history = createEventHistory()
    history.append(event(1))
    const stream = eventStream({
      history,
      clock: systemClock,
      heartbeatMs: HEARTBEAT_MS,
      lastEventId: createEventHistory().idOf(7),
      signal: never,
      onEnd: () => {},
    })
    const frames: string[] = []
    for await (const frame of stream) {
      frames.push(new TextDecoder().decode(frame))
      if (frames.length === 3) break
    }
    expect(frames).toEqual([
      `retry: 1000\nid: ${history.idOf(0)}\n\n`,
      'event: gap\ndata: {"missed":null}\n\n',
      `id: ${history.idOf(1)}\ndata: ${JSON.stringify(event(1))}\n\n`,
    ])
  })

  test('holds nothing for a reader that does not read, and ends when it goes', async () => {
    const history = createEventHistory(10)
    let ends = 0
    const reader = eventStream({
      history,
      clock: systemClock,
      heartbeatMs: HEARTBEAT_MS,
      lastEventId: undefined,
      signal: never,
      onEnd: () => ends++,
    }).getReader()
    await reader.read()
    for (let step = 1; step <= 100; step++) history.append(event(step))
    await systemClock.sleep(5)
    let text = ''
    while (!text.includes('"outerStep":100')) {
      text += new TextDecoder().decode((await reader.read()).value)
    }
    // One frame may have been made before the reader fell behind.
    expect(text.match(/"outerStep"/g)?.length).toBeLessThanOrEqual(11)
    await reader.cancel()
    expect(ends).toBe(1)
  })
})

describe('the event reader', () => {
  test('resumes over broken connections without loss or repetition', async () => {
    const history = createEventHistory()
    const end = new AbortController()
    const connections: AbortController[] = []
    const events = readEvents({
      clock: hastyClock,
      signal: end.signal,
      open: async (lastEventId, attempt) => {
        const connection = new AbortController()
        connections.push(connection)
        return eventStream({
          history,
          clock: systemClock,
          heartbeatMs: HEARTBEAT_MS,
          lastEventId,
          signal: AbortSignal.any([attempt, connection.signal]),
          onEnd: () => {},
        })
      },
    })
    const steps: number[] = []
    const reading = (async () => {
      for await (const { type, ...rest } of events) {
        if (type === 'validation' && 'outerStep' in rest) steps.push(rest.outerStep)
        if (steps.length === 30) break
      }
    })()
    for (let step = 1; step <= 30; step++) {
      // The first frame carries the position, so even a connection that saw no event resumes there.
      while (connections.length === 0) await systemClock.sleep(1)
      if (step === 1) await systemClock.sleep(5)
      if (step % 7 === 0) connections.at(-1)?.abort()
      history.append(event(step))
      await systemClock.sleep(1)
    }
    await reading
    expect(steps).toEqual(Array.from({ length: 30 }, (_, index) => index + 1))
    expect(connections.length).toBeGreaterThan(3)
  })

  test('passes over comments, gaps and events it does not know, cut anywhere', async () => {
    const frames = [
      ': heartbeat\n\n',
      'event: gap\ndata: {"missed":3}\n\n',
      'id: x-1\ndata: {"type":"from_the_future"}\n\n',
      `id: x-2\ndata: ${JSON.stringify(event(7))}\n\n`,
    ]
    const bytes = new TextEncoder().encode(frames.join(''))
    for (const size of [1, 7, bytes.length]) {
      const end = new AbortController()
      const events = readEvents({
        clock: hastyClock,
        signal: end.signal,
        open: async () =>
          new ReadableStream({
            start(controller) {
              for (let at = 0; at < bytes.length; at += size) {
                controller.enqueue(bytes.subarray(at, at + size))
              }
            },
          }),
      })
      const first = await events.next()
      expect(first.value).toEqual(event(7))
      end.abort()
      expect((await events.next()).done).toBe(true)
    }
  })

  test('does not collect an event without end', async () => {
    const endless = new TextEncoder().encode('data: '.padEnd(70_000, 'x'))
    const events = readEvents({
      clock: hastyClock,
      signal: never,
      open: async () => new ReadableStream({ start: (controller) => controller.enqueue(endless) }),
    })
    await expect(events.next()).rejects.toMatchObject({ code: 'message_invalid' })
  })
})
