/** Who is alone in an all-reduce run: how long it waits for the others, and when it goes on without them. */
import { expect, test } from 'vitest'
import { createCompany } from '../../../src/run/company.ts'
import type { Partners } from '../../../src/run/partners.ts'
import { blankRecord, type PeerRecord } from '../../../src/state/record.ts'
import { createManualClock, type ManualClock } from '../../manual-clock.ts'

const SELF = 'self'
const ROUND_MS = 10_000
const PATIENCE_MS = 4_000
const { signal } = new AbortController()

interface Lonely {
  clock: ManualClock
  /** Who was looked for. */
  sought: string[]
  /** The others' records change. */
  set: (records: Record<string, PeerRecord>) => void
  /** How long one search takes that finds `group` as soon as there is something in it. */
  search: (group: () => string[]) => { elapsedMs?: number; found?: string[] }
}

function lonely(records: Record<string, PeerRecord>): Lonely {
  const clock = createManualClock()
  const listeners = new Set<() => void>()
  const sought: string[] = []
  let present = records
  const state = {
    members: () =>
      Object.entries({ ...present, [SELF]: blankRecord('training', 7) }).map(([peer, record]) => ({
        peer,
        record,
        ageMs: 0,
      })),
    onChange(listener: () => void) {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
  }
  const company = createCompany({
    self: SELF,
    state,
    clock,
    roundTimeoutMs: ROUND_MS,
    async seek(others, seeking) {
      sought.push(...others())
      await clock.sleep(600_000, seeking).catch(() => {})
    },
  })
  return {
    clock,
    sought,
    set(next) {
      present = next
      for (const listener of listeners) listener()
    },
    search(group) {
      const startedMs = clock.now()
      const search: ReturnType<Lonely['search']> = {}
      const choose = (): Partners => ({ group: group(), candidates: [] })
      const elsewhere = (): boolean => Object.values(present).some((other) => other.outerStep > 99)
      const finding = company.find({ choose, elsewhere, patienceMs: PATIENCE_MS }, signal)
      void finding.then(({ group: found }) =>
        Object.assign(search, { elapsedMs: clock.now() - startedMs, found }),
      )
      return search
    },
  }
}

const at = (outerStep: number): PeerRecord => blankRecord('training', outerStep)

test('who has partners, or a swarm of its own, waits for nobody', async () => {
  const { clock, search } = lonely({ a: at(7) })
  const together = search(() => ['a'])
  const left = lonely({ a: blankRecord('leaving', 7), b: blankRecord('finished', 7) })
  const alone = left.search(() => [])
  await clock.advance(0)
  expect(together).toEqual({ elapsedMs: 0, found: ['a'] })
  expect(alone).toEqual({ elapsedMs: 0, found: [] })
})

test('who is alone goes on with those who come, and those who come with them', async () => {
  const { clock, sought, set, search } = lonely({ a: at(2), b: at(2) })
  const group: string[] = []
  const waiting = search(() => [...group])
  await clock.advance(1_000)
  group.push('a')
  set({ a: at(7), b: at(2) })
  await clock.advance(50)
  group.push('b')
  await clock.advance(50)
  expect(waiting).toEqual({ elapsedMs: 1_100, found: ['a', 'b'] })
  expect(sought).toEqual(['a', 'b'])
})

test('alone it waits a round in all, and again for whoever moves', async () => {
  const { clock, set, search } = lonely({ a: at(2) })
  const waits: (number | undefined)[] = []
  const wait = async (): Promise<void> => {
    const waiting = search(() => [])
    await clock.advance(PATIENCE_MS)
    waits.push(waiting.elapsedMs)
  }
  for (let step = 0; step < 4; step++) await wait()
  set({ a: at(3) })
  await wait()
  set({})
  await wait()
  expect(waits).toEqual([4_000, 4_000, 2_000, 0, 4_000, 0])
})

test('those who are far away are not waited for', async () => {
  const { clock, set, search } = lonely({ a: at(2) })
  const waiting = search(() => [])
  await clock.advance(1_000)
  set({ a: at(100) })
  await clock.advance(0)
  expect(waiting).toEqual({ elapsedMs: 1_000, found: [] })
})
