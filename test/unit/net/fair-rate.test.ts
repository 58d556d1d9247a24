import { describe, expect, test } from 'vitest'
import { createFairRate } from '../../../src/net/fair-rate.ts'
import type { FairRate } from '../../../src/net/fair-rate.ts'
import { createManualClock } from '../../manual-clock.ts'

const RATE = 1_000_000

/** Somebody who sends as much as he may; returns how much that was. */
function sender(rate: FairRate, owner: string): () => number {
  let sent = 0
  const share = rate.open(owner, send)
  function send(): void {
    sent += share.take(10_000_000)
  }
  send()
  return () => sent
}

describe('a fair rate', () => {
  test('is kept, over a short and a long time', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    const sent = sender(rate, 'a')
    const before = sent()
    // What may be caught up: 100 ms.
    expect(before).toBe(RATE / 10)
    for (const seconds of [0.1, 1, 10]) {
      const start = sent()
      await clock.advance(1000 * seconds)
      expect(sent() - start).toBeGreaterThan(0.95 * RATE * seconds - 25_000)
      expect(sent() - start).toBeLessThan(1.01 * RATE * seconds + 25_000)
    }
  })

  test('is shared equally by owners, not by connections', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    const modest = sender(rate, 'modest')
    const greedy = Array.from({ length: 9 }, () => sender(rate, 'greedy'))
    const sentByGreedy = (): number => greedy.reduce((sum, sent) => sum + sent(), 0)
    const [modestBefore, greedyBefore] = [modest(), sentByGreedy()]
    await clock.advance(10_000)
    const share = modest() - modestBefore
    expect(share / (sentByGreedy() - greedyBefore)).toBeCloseTo(1, 1)
    // And all connections of one have their turns.
    const each = greedy.map((sent) => sent())
    expect(Math.min(...each)).toBeGreaterThan(0.8 * Math.max(...each))
  })

  test('that one does not use is there for the others', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    rate.open('idle', () => {})
    const busy = sender(rate, 'busy')
    const before = busy()
    await clock.advance(5000)
    expect(busy() - before).toBeGreaterThan(0.95 * 5 * RATE)
  })

  test('goes by the owner of the moment', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    let sent = 0
    const renamed = rate.open('stranger', () => {
      sent += renamed.take(10_000_000)
    })
    renamed.take(10_000_000)
    renamed.owner = 'a'
    const other = sender(rate, 'a')
    const third = sender(rate, 'b')
    await clock.advance(20_000)
    expect((sent + other()) / third()).toBeCloseTo(1, 1)
  })

  test('counts what was not to be held up, and holds up what follows', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    let turns = 0
    const share = rate.open('a', () => turns++)
    expect(share.spend(50_000)).toBe(true)
    expect(share.spend(550_000)).toBe(false)
    await clock.advance(400)
    expect(turns).toBe(0)
    // Half a second for what was too much, and a little for the next turn.
    await clock.advance(130)
    expect(turns).toBe(1)
    expect(share.spend(1000)).toBe(true)
  })

  test('gives back what was taken in vain', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    const share = rate.open('a', () => {})
    expect(share.take(100_000)).toBe(100_000)
    share.giveBack(60_000)
    expect(share.take(60_000)).toBe(60_000)
    expect(share.take(60_000)).toBe(0)
  })

  test('of a few bytes a second still moves', async () => {
    const clock = createManualClock()
    const rate = createFairRate(1000, clock)
    const sent = sender(rate, 'a')
    await clock.advance(60_000)
    expect(sent()).toBeGreaterThan(55_000)
    expect(sent()).toBeLessThan(65_000)
  })

  test('forgets what is closed, and holds nothing up once stopped', async () => {
    const clock = createManualClock()
    const rate = createFairRate(RATE, clock)
    let turns = 0
    const share = rate.open('a', () => turns++)
    share.take(10_000_000)
    share.close()
    await clock.advance(1000)
    expect(turns).toBe(0)
    const other = rate.open('b', () => turns++)
    other.take(10_000_000)
    rate.stop()
    expect(turns).toBe(1)
    expect(other.take(5_000_000)).toBe(5_000_000)
    expect(other.spend(5_000_000)).toBe(true)
  })
})
