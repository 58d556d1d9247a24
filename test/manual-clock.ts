/** Time that moves only when a test says so: sleepers wake in order, and what they start is given the time to run. */
import { setImmediate } from 'node:timers/promises'
import { abortReason, type Clock } from '../src/clock.ts'
import { ShoalError } from '../src/errors.ts'

export interface ManualClock extends Clock {
  /** Moves time on by `ms`, waking sleepers on the way. */
  advance(ms: number): Promise<void>
}

interface Sleeper {
  wakeAtMs: number
  wake: () => void
}

/** Lets everything run that waits for nothing but the event loop. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 10; turn++) await setImmediate()
}

export function createManualClock(startMs = 1_000): ManualClock {
  let nowMs = startMs
  const sleepers = new Set<Sleeper>()

  function sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(abortReason(signal))
      const sleeper: Sleeper = {
        wakeAtMs: nowMs + ms,
        wake: () => {
          signal?.removeEventListener('abort', aborted)
          resolve()
        },
      }
      function aborted(): void {
        sleepers.delete(sleeper)
        reject(abortReason(signal))
      }
      signal?.addEventListener('abort', aborted, { once: true })
      sleepers.add(sleeper)
    })
  }

  return {
    now: () => nowMs,
    sleep,
    deadline(ms, cause, signal) {
      const controller = new AbortController()
      sleep(ms).then(
        () => controller.abort(new ShoalError('timeout', `${cause} took longer than ${ms} ms`)),
        () => {},
      )
      return signal === undefined ? controller.signal : AbortSignal.any([signal, controller.signal])
    },
    async advance(ms) {
      const untilMs = nowMs + ms
      await settle()
      for (;;) {
        const dueMs = Math.min(...[...sleepers].map(({ wakeAtMs }) => wakeAtMs))
        if (dueMs > untilMs) break
        nowMs = dueMs
        for (const sleeper of sleepers) {
          if (sleeper.wakeAtMs > dueMs) continue
          sleepers.delete(sleeper)
          sleeper.wake()
        }
        await settle()
      }
      nowMs = untilMs
    },
  }
}
