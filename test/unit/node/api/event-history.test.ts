import { describe, expect, test } from 'vitest'
import { createEventHistory } from '../../../../node/api/event-history.ts'
import type { RunEvent } from '../../../../src/run/view.ts'

const event = (outerStep: number): RunEvent => ({
  type: 'validation',
  run: 'bafy',
  outerStep,
  loss: 2,
})

describe('the event history', () => {
  test('gives what came after a position and says what it no longer has', () => {
    const history = createEventHistory(3)
    expect(history.since(0)).toEqual({ events: [], missed: 0 })
    for (let step = 1; step <= 5; step++) history.append(event(step))
    expect(history.since(5)).toEqual({ events: [], missed: 0 })
    expect(history.since(4).events).toEqual([{ number: 5, event: event(5) }])
    expect(history.since(1)).toMatchObject({ missed: 1 })
    expect(history.since(1).events.map(({ number }) => number)).toEqual([3, 4, 5])
    expect(history.since(2)).toMatchObject({ missed: 0 })
  })

  test('ids lead back to their position, ids of another history nowhere', () => {
    const history = createEventHistory()
    history.append(event(1))
    history.append(event(2))
    expect(history.numberOf(history.idOf(1))).toBe(1)
    expect(history.numberOf(createEventHistory().idOf(1))).toBeUndefined()
    expect(history.numberOf(history.idOf(99))).toBe(2)
    for (const id of ['', '-', 'x', '1', `${history.idOf(1)}x`, '../1']) {
      expect(history.numberOf(id)).toBeUndefined()
    }
  })

  test('wakes readers', async () => {
    const history = createEventHistory()
    const abort = new AbortController()
    let woken = 0
    const waits = [1, 2].map(() => history.wait(0, abort.signal).then(() => woken++))
    const later = history.wait(1, abort.signal)
    history.append(event(1))
    await Promise.all(waits)
    expect(woken).toBe(2)
    abort.abort()
    // Woken too early for its position is harmless: readers look again.
    await Promise.allSettled([later])
    await expect(history.wait(1, abort.signal)).rejects.toMatchObject({ code: 'aborted' })
  })
})
