import { describe, expect, test } from 'vitest'
import { createExpiry } from '../../../src/net/expiry.ts'
import type { Expiring, Expiry } from '../../../src/net/expiry.ts'
import { createManualClock } from '../../manual-clock.ts'
import type { ManualClock } from '../../manual-clock.ts'

interface Item extends Expiring {
  name: string
}

function start(): {
  clock: ManualClock
  expiry: Expiry<Item>
  expired: string[]
  sleeps: number[]
} {
  const clock = createManualClock()
  const sleeps: number[] = []
  const expired: string[] = []
  const counted = {
    ...clock,
    sleep: (ms: number, signal?: AbortSignal) => {
      sleeps.push(ms)
      return clock.sleep(ms, signal)
    },
  }
  const expiry = createExpiry<Item>(counted, ({ name }) => expired.push(`${name} ${clock.now()}`))
  return { clock, expiry, expired, sleeps }
}

describe('expiry', () => {
  test('comes at the time of each item, whatever the order they were added in', async () => {
    const { clock, expiry, expired } = start()
    expiry.add({ name: 'late', expiresAtMs: 1300 })
    expiry.add({ name: 'soon', expiresAtMs: 1100 })
    expiry.add({ name: 'middle', expiresAtMs: 1200 })
    await clock.advance(1000)
    expect(expired).toEqual(['soon 1100', 'middle 1200', 'late 1300'])
    expect([...expiry]).toEqual([])
  })

  test('does not come for what was deleted, nor twice', async () => {
    const { clock, expiry, expired } = start()
    const [a, b] = [
      { name: 'a', expiresAtMs: 1100 },
      { name: 'b', expiresAtMs: 1100 },
    ]
    expiry.add(a)
    expiry.add(b)
    expiry.delete(a)
    await clock.advance(500)
    expiry.delete(b)
    await clock.advance(500)
    expect(expired).toEqual(['b 1100'])
  })

  test('comes at once for what is late already', async () => {
    const { clock, expiry, expired } = start()
    expiry.add({ name: 'a', expiresAtMs: 10 })
    await clock.advance(0)
    expect(expired).toEqual(['a 1000'])
  })

  test('takes one timer for a steady flow, not one per item', async () => {
    const { clock, expiry, expired, sleeps } = start()
    for (let count = 0; count < 10_000; count++) {
      const item = { name: 'x', expiresAtMs: clock.now() + 1000 }
      expiry.add(item)
      if (count % 1000 === 0) await clock.advance(100)
      expiry.delete(item)
    }
    expect(expired).toEqual([])
    expect(sleeps.length).toBeLessThan(5)
  })

  test('goes on for what an expiry adds', async () => {
    const clock = createManualClock()
    let count = 0
    const expiry = createExpiry<Item>(clock, ({ expiresAtMs }) => {
      if (++count < 5) expiry.add({ name: 'next', expiresAtMs: expiresAtMs + 100 })
    })
    expiry.add({ name: 'first', expiresAtMs: 1100 })
    await clock.advance(450)
    expect(count).toBe(4)
    await clock.advance(1000)
    expect(count).toBe(5)
  })

  test('never comes after a stop', async () => {
    const { clock, expiry, expired } = start()
    expiry.add({ name: 'a', expiresAtMs: 1100 })
    expiry.stop()
    await clock.advance(1000)
    expect(expired).toEqual([])
  })
})
