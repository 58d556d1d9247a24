import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { createSendWindow, SMALLEST_WINDOW_BYTES } from '../../../src/net/send-window.ts'
import { createManualClock } from '../../manual-clock.ts'

const MESSAGE = 32 << 10

interface Line {
  bytesPerMs: number
  roundTripMs: number
}

interface Driven {
  bytesPerMs: number
  mostInFlight: number
}

/** A sender that always has more, over a line with a queue that never overflows. */
function createSender() {
  let now = 0
  let sent = 0
  let freeAt = 0
  const window = createSendWindow({ ...createManualClock(), now: () => now })
  const acknowledgements: { at: number; total: number }[] = []

  function drive(line: Line, forMs: number): Driven {
    const endsAt = now + forMs
    const before = sent - window.bytesInFlight()
    let mostInFlight = 0
    for (;;) {
      while (window.isOpen()) {
        sent += MESSAGE
        window.sent(MESSAGE)
        freeAt = Math.max(now, freeAt) + MESSAGE / line.bytesPerMs
        acknowledgements.push({ at: freeAt + line.roundTripMs, total: sent })
      }
      // The start-up may try what the line cannot hold.
      if (endsAt - now < forMs / 2) mostInFlight = Math.max(mostInFlight, window.bytesInFlight())
      const [next] = acknowledgements
      if (next === undefined || next.at > endsAt) break
      acknowledgements.shift()
      now = next.at
      expect(window.taken(next.total)).toBe(true)
    }
    now = endsAt
    return { bytesPerMs: (sent - window.bytesInFlight() - before) / forMs, mostInFlight }
  }
  return { window, drive }
}

describe('a window', () => {
  test.each<[string, Line]>([
    ['100 Mbit/s and 20 ms', { bytesPerMs: 12_500, roundTripMs: 20 }],
    ['10 Mbit/s and 100 ms', { bytesPerMs: 1_250, roundTripMs: 100 }],
    ['1 Gbit/s and 5 ms', { bytesPerMs: 125_000, roundTripMs: 5 }],
    ['50 Mbit/s and 200 ms', { bytesPerMs: 6_250, roundTripMs: 200 }],
  ])('fills a line of %s, and not its queue', (_what, line) => {
    const { drive } = createSender()
    const { bytesPerMs, mostInFlight } = drive(line, 30_000)
    expect(bytesPerMs).toBeGreaterThan(0.9 * line.bytesPerMs)
    const held = line.bytesPerMs * line.roundTripMs
    expect(mostInFlight).toBeLessThan(Math.max(2.5 * held, SMALLEST_WINDOW_BYTES) + 2 * MESSAGE)
  })

  test('follows a line that becomes longer, slower and faster again', () => {
    const { drive } = createSender()
    drive({ bytesPerMs: 12_500, roundTripMs: 20 }, 20_000)
    for (const line of [
      { bytesPerMs: 12_500, roundTripMs: 150 },
      { bytesPerMs: 2_500, roundTripMs: 150 },
      { bytesPerMs: 12_500, roundTripMs: 20 },
    ]) {
      drive(line, 20_000)
      const { bytesPerMs, mostInFlight } = drive(line, 20_000)
      expect(bytesPerMs).toBeGreaterThan(0.85 * line.bytesPerMs)
      expect(mostInFlight).toBeLessThan(3 * line.bytesPerMs * line.roundTripMs + 2 * MESSAGE)
    }
  })

  test('is never larger than allowed', () => {
    const { drive } = createSender()
    const { mostInFlight } = drive({ bytesPerMs: 1e6, roundTripMs: 100 }, 5_000)
    expect(mostInFlight).toBeLessThan(LIMITS.webRtcWindowBytes + MESSAGE + 1)
  })

  test('stays shut while nothing is taken', () => {
    const window = createSendWindow(createManualClock())
    for (let time = 0; window.isOpen(); time++) window.sent(MESSAGE)
    expect(window.bytesInFlight()).toBe(SMALLEST_WINDOW_BYTES)
    expect(window.taken(0)).toBe(true)
    expect(window.isOpen()).toBe(false)
    expect(window.taken(MESSAGE)).toBe(true)
    expect(window.isOpen()).toBe(true)
  })

  test('believes nothing that cannot be', () => {
    const window = createSendWindow(createManualClock())
    window.sent(1000)
    expect(window.taken(1001)).toBe(false)
    expect(window.taken(600)).toBe(true)
    expect(window.taken(599)).toBe(false)
    expect(window.bytesInFlight()).toBe(400)
  })
})
