import { assert, asyncProperty, integer, record } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { silentLogger } from '../../../src/log.ts'
import { createEventLog, type EventLog, type LoggedEvent } from '../../../src/run/event-log.ts'
import { historyOf } from '../../../src/run/history.ts'
import type { RunEvent } from '../../../src/run/view.ts'
import { createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'

function logOn(records: RecordStore, size?: number, startMs = 0): EventLog {
  let wallMs = startMs
  return createEventLog({
    records,
    clock: systemClock,
    logger: silentLogger,
    wallMs: () => wallMs++,
    ...(size !== undefined && { size }),
  })
}

const status = (run: string, outerStep: number): RunEvent => ({
  type: 'run_status',
  run,
  status: 'training',
  outerStep,
})
const step = (outerStep: number, loss = 3 - outerStep / 100): RunEvent => ({
  type: 'outer_step',
  run: 'a',
  outerStep,
  loss,
  tokens: 100 * outerStep,
  tokensPerSecond: 10,
  consensusDistance: outerStep === 1 ? null : 0.5,
  round: {
    outerStep: outerStep - 1,
    outcome: 'averaged',
    partners: ['x'],
    durationMs: 5,
    bytesSent: 7,
    bytesReceived: 8,
    reasons: [],
  },
})

async function all(log: EventLog, run: string, after?: number): Promise<LoggedEvent[]> {
  const events: LoggedEvent[] = []
  for await (const event of log.read(run, after)) events.push(event)
  return events
}

describe('the event log', () => {
  test('keeps events of each run in order, over a restart', async () => {
    const records = createMemoryRecordStore()
    const before = logOn(records)
    before.append(status('a', 0))
    before.append(status('b', 9))
    before.append(status('a', 1))
    await before.close()
    const log = logOn(records, undefined, 100)
    log.append(status('a', 2))
    expect(await all(log, 'a')).toEqual([
      { number: 1, timeMs: 0, event: status('a', 0) },
      { number: 2, timeMs: 2, event: status('a', 1) },
      { number: 3, timeMs: 100, event: status('a', 2) },
    ])
    expect(await all(log, 'b')).toHaveLength(1)
    expect(await all(log, 'c')).toEqual([])
  })

  test('leaves out inner steps', async () => {
    const log = logOn(createMemoryRecordStore())
    log.append({ type: 'inner_progress', run: 'a', outerStep: 0, innerStep: 1, loss: 2 })
    expect(await all(log, 'a')).toEqual([])
  })

  test('reads what comes after any number, whatever was dropped', async () => {
    const counts = record({
      events: integer({ min: 0, max: 250 }),
      after: integer({ min: 0, max: 300 }),
      size: integer({ min: 1, max: 150 }),
      together: integer({ min: 1, max: 100 }),
    })
    await assert(
      asyncProperty(counts, async ({ events, after, size, together }) => {
        const records = createMemoryRecordStore()
        const log = logOn(records, size)
        for (let number = 1; number <= events; number++) {
          log.append(status('a', number))
          if (number % together === 0) await log.close()
        }
        const read = await all(log, 'a', after)
        const first = Math.max(after, events - size) + 1
        const expected = Array.from(
          { length: Math.max(0, events + 1 - first) },
          (_, i) => first + i,
        )
        expect(read.map(({ number }) => number)).toEqual(expected)
        expect(read.map(({ event }) => event)).toEqual(expected.map((n) => status('a', n)))
        // Nothing of what was dropped is left on disk.
        const stored = (await records.list('events/a/')).length
        expect(stored).toBe(events === 0 ? 0 : Math.min(size, events) + 1)
      }),
      { numRuns: 40 },
    )
  })

  test('forgets a run and no other', async () => {
    const records = createMemoryRecordStore()
    const log = logOn(records)
    for (const run of ['a', 'b']) log.append(status(run, 1))
    await log.forget('a')
    expect(await all(log, 'a')).toEqual([])
    expect(await all(log, 'b')).toHaveLength(1)
    log.append(status('a', 2))
    expect(await all(log, 'a')).toMatchObject([{ number: 1, event: { outerStep: 2 } }])
  })

  test('passes over what it cannot read', async () => {
    const records = createMemoryRecordStore()
    const log = logOn(records)
    for (const outerStep of [1, 2, 3]) log.append(status('a', outerStep))
    await log.close()
    await records.put('events/a/000000000002', new TextEncoder().encode('{"number":2'))
    expect((await all(log, 'a')).map(({ number }) => number)).toEqual([1, 3])
  })

  test('says how much it has let go of while the disk did not answer', async () => {
    const records = createMemoryRecordStore()
    const disk = Promise.withResolvers<void>()
    const warned: unknown[] = []
    const log = createEventLog({
      records: {
        ...records,
        batch: async (operations) => {
          await disk.promise
          await records.batch(operations)
        },
      },
      clock: systemClock,
      logger: {
        ...silentLogger,
        warn: (event, fields) => warned.push([event, fields?.['events']]),
      },
    })
    log.append(status('a', 1))
    await systemClock.sleep(0)
    for (let number = 2; number <= 2002; number++) log.append(status('a', number))
    disk.resolve()
    const read = await all(log, 'a')
    expect(read.map(({ number }) => number)).toEqual(read.map((_, index) => index + 1))
    expect(warned).toEqual([['events_not_logged', 2002 - read.length]])
  })

  test('goes on after a disk that was full', async () => {
    const records = createMemoryRecordStore()
    let isFull = true
    const failing: RecordStore = {
      ...records,
      batch: async (operations) => {
        if (isFull) throw new Error('full')
        await records.batch(operations)
      },
    }
    const log = logOn(failing)
    log.append(status('a', 1))
    await log.close()
    isFull = false
    log.append(status('a', 2))
    expect(await all(log, 'a')).toMatchObject([{ number: 1, event: { outerStep: 2 } }])
  })
})

describe('the history', () => {
  const logged = (events: readonly RunEvent[]): LoggedEvent[] =>
    events.map((event, index) => ({ number: index + 1, timeMs: 1000 * index, event }))

  test('has a point per outer step, the later one where a crash made it happen twice', async () => {
    const history = await historyOf(logged([step(1), step(2, 9), step(2, 8), step(3)]), 100)
    expect(history.steps.map(({ outerStep, loss, timeMs }) => [outerStep, loss, timeMs])).toEqual([
      [1, 2.99, 0],
      [2, 8, 2000],
      [3, 2.97, 3000],
    ])
    expect(history.steps[2]).toEqual({
      outerStep: 3,
      timeMs: 3000,
      loss: 2.97,
      tokens: 300,
      tokensPerSecond: 10,
      consensusDistance: 0.5,
      outcome: 'averaged',
      partners: ['x'],
      durationMs: 5,
      bytesSent: 7,
      bytesReceived: 8,
    })
    expect(history.newest).toBe(4)
  })

  test('leaves out what a peer did before it went back to where others are', async () => {
    const events = [step(1), step(2), step(8), step(9), step(3, 5), step(4)]
    const { steps } = await historyOf(logged(events), 100)
    expect(steps.map(({ outerStep }) => outerStep)).toEqual([1, 2, 3, 4])
  })

  test('tells of validations and of members that came and went', async () => {
    const events: RunEvent[] = [
      { type: 'member', run: 'a', peer: 'x', change: 'joined' },
      { type: 'validation', run: 'a', outerStep: 4, loss: 2 },
      { type: 'member', run: 'a', peer: 'x', change: 'left' },
    ]
    expect(await historyOf(logged(events), 10)).toEqual({
      newest: 3,
      steps: [],
      validations: [{ outerStep: 4, timeMs: 1000, loss: 2 }],
      members: [
        { timeMs: 0, peer: 'x', change: 'joined' },
        { timeMs: 2000, peer: 'x', change: 'left' },
      ],
    })
  })

  test('leaves out steps evenly, never the newest, when there are too many', async () => {
    for (let count = 1; count < 60; count++) {
      const events = Array.from({ length: count }, (_, index) => step(index + 1))
      const { steps } = await historyOf(logged(events), 10)
      expect(steps.length).toBeLessThanOrEqual(10)
      expect(steps.length).toBeGreaterThanOrEqual(Math.min(count, 5))
      expect(steps.at(-1)?.outerStep).toBe(count)
      const gaps = new Set(steps.slice(1).map((s, i) => s.outerStep - (steps[i]?.outerStep ?? 0)))
      expect(gaps.size).toBeLessThanOrEqual(1)
    }
  })
})
