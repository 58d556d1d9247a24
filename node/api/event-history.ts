/**
 * The last domain events, numbered, for readers that come, go and resume.
 *
 * Readers hold a position and no queue of their own: one that is too slow misses events and is told how many, and
 * costs no memory here.
 */
import { raceSignal } from '../../src/clock.ts'
import { LIMITS } from '../../src/limits.ts'
import type { RunEvent } from '../../src/run/view.ts'

export interface NumberedEvent {
  number: number
  event: RunEvent
}

export interface EventHistory {
  append(event: RunEvent): void
  /** Number of the newest event, 0 before the first. */
  newest(): number
  /** Events after number `after`, and how many of them are kept no longer. */
  since(after: number): { events: NumberedEvent[]; missed: number }
  /** Resolves when there is an event after number `after`; rejects with the signal's reason. */
  wait(after: number, signal: AbortSignal): Promise<void>
  /** Id for a reader to resume after event `number`; it names this history, so that a restart is noticed. */
  idOf(number: number): string
  /** The number in an id of this history; undefined for ids of another one. */
  numberOf(id: string): number | undefined
}

export function createEventHistory(size: number = LIMITS.eventHistory): EventHistory {
  const name = crypto.randomUUID().slice(0, 8)
  const kept: NumberedEvent[] = []
  let count = 0
  let appended = Promise.withResolvers<void>()
  return {
    append(event) {
      kept.push({ number: ++count, event })
      if (kept.length > size) kept.shift()
      appended.resolve()
      appended = Promise.withResolvers<void>()
    },
    newest: () => count,
    since(after) {
      const oldest = kept[0]?.number ?? count + 1
      return {
        events: kept.slice(Math.max(0, after + 1 - oldest)),
        missed: Math.max(0, oldest - after - 1),
      }
    },
    async wait(after, signal) {
      if (count <= after) await raceSignal(appended.promise, signal)
    },
    idOf: (number) => `${name}-${number}`,
    numberOf(id) {
      const [owner, digits = ''] = id.split('-')
      const isOwn = owner === name && /^\d{1,15}$/.test(digits)
      return isOwn ? Math.min(Number(digits), count) : undefined
    },
  }
}
