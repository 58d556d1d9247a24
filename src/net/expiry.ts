/** Deadlines of many short works on one timer: a timer and an abort signal each would cost more than the works. */
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'

export interface Expiring {
  /** By `clock.now()`; does not change while it waits. */
  readonly expiresAtMs: number
}

export interface Expiry<T extends Expiring> extends Iterable<T> {
  add(item: T): void
  delete(item: T): void
  /** Ends the timer; nothing expires any more. */
  stop(): void
}

/** One for all timers that end early: an error made for each would be the greater part of its cost. */
const EARLIER = new ShoalError('aborted', 'something else expires earlier')

/**
 * Calls `onExpired` once for each item that was not deleted before its time, and forgets it. The timer is left running
 * when an item is deleted: in a steady flow it is set again once per deadline, not once per item.
 */
export function createExpiry<T extends Expiring>(
  clock: Clock,
  onExpired: (item: T) => void,
): Expiry<T> {
  const items = new Set<T>()
  let timer: { endsAtMs: number; cancelled: AbortController } | undefined

  async function arm(endsAtMs: number): Promise<void> {
    timer?.cancelled.abort(EARLIER)
    const cancelled = new AbortController()
    timer = { endsAtMs, cancelled }
    try {
      await clock.sleep(Math.max(0, Math.ceil(endsAtMs - clock.now())), cancelled.signal)
    } catch {
      return
    }
    timer = undefined
    expire()
  }

  function expire(): void {
    const now = clock.now()
    let nextMs = Infinity
    for (const item of items) {
      if (item.expiresAtMs <= now) {
        items.delete(item)
        onExpired(item)
      } else nextMs = Math.min(nextMs, item.expiresAtMs)
    }
    if (nextMs < (timer?.endsAtMs ?? Infinity)) void arm(nextMs)
  }

  return {
    [Symbol.iterator]: () => items.values(),
    add(item) {
      items.add(item)
      if (item.expiresAtMs < (timer?.endsAtMs ?? Infinity)) void arm(item.expiresAtMs)
    },
    delete: (item) => void items.delete(item),
    stop() {
      items.clear()
      timer?.cancelled.abort(EARLIER)
      timer = undefined
    },
  }
}
