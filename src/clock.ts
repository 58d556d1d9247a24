/**
 * Time as an argument, and every wait with a deadline that has a name.
 *
 * Clocks of peers are never compared: `now` orders events of one node only.
 */
import { ShoalError } from './errors.ts'

/** Time as a port: tests and simulations have their own. */
export interface Clock {
  /** Milliseconds since an arbitrary start, monotonic. */
  now(): number
  /** Resolves after `ms`; rejects with the signal's reason when aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
  /** An abort signal that fires with a `timeout` fault naming `cause`, or with `signal`'s own reason. */
  deadline(ms: number, cause: string, signal?: AbortSignal): AbortSignal
}

/** The machine's own time. */
export const systemClock: Clock = {
  now: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(abortReason(signal))
      const timer = setTimeout(done, ms)
      signal?.addEventListener('abort', aborted, { once: true })
      function done(): void {
        signal?.removeEventListener('abort', aborted)
        resolve()
      }
      function aborted(): void {
        clearTimeout(timer)
        reject(abortReason(signal))
      }
    }),
  deadline: (ms, cause, signal) => {
    const controller = new AbortController()
    const fault = new ShoalError('timeout', `${cause} took longer than ${Math.round(ms)} ms`)
    const timer: { unref?(): void } | number = setTimeout(() => controller.abort(fault), ms)
    // In Node a pending deadline must not keep a finished process alive.
    if (typeof timer === 'object') timer.unref?.()
    return signal === undefined ? controller.signal : AbortSignal.any([signal, controller.signal])
  },
}

/** The reason of an aborted signal as an `Error`, so that it can be thrown and read. */
export function abortReason(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason
  if (reason instanceof ShoalError) return reason
  return new ShoalError('aborted', 'interrupted', { cause: reason })
}

/** Why a timer ends before its time. One for all: an error made for each call would cost a tenth of it. */
const FINISHED = new ShoalError('aborted', 'finished in time')

/**
 * Runs `work` under a deadline whose timer ends with it. As `clock.deadline`, but for what happens thousands of times a
 * second: no timer outlives its work.
 */
export async function withDeadline<T>(
  clock: Clock,
  ms: number,
  cause: string,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const expired = new AbortController()
  const done = new AbortController()
  clock.sleep(ms, done.signal).then(
    () =>
      expired.abort(new ShoalError('timeout', `${cause} took longer than ${Math.round(ms)} ms`)),
    () => {},
  )
  try {
    return await work(
      signal === undefined ? expired.signal : AbortSignal.any([expired.signal, signal]),
    )
  } finally {
    done.abort(FINISHED)
  }
}

/**
 * Waits for `promise` no longer than `signal` allows. For APIs that take no signal of their own: the
 * work goes on unobserved, so use it only where that is harmless.
 */
export async function raceSignal<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) {
    promise.catch(() => {})
    throw abortReason(signal)
  }
  let onAbort: (() => void) | undefined
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(abortReason(signal))
    signal.addEventListener('abort', onAbort, { once: true })
  })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    if (onAbort !== undefined) signal.removeEventListener('abort', onAbort)
    promise.catch(() => {})
  }
}
