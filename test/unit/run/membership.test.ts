import { describe, expect, test } from 'vitest'
import { createMembership, type Membership } from '../../../src/run/membership.ts'
import { blankRecord, type PeerRecord } from '../../../src/state/record.ts'
import type { SharedState } from '../../../src/state/shared-state.ts'

const SELF = 'self'
const STALENESS = 1

const RECORD: PeerRecord = { ...blankRecord('training'), tokensPerSecond: 100 }

type Others = Record<string, Partial<PeerRecord>>

/** What others have published; `set` changes it. */
function membershipOf(
  others: Others,
  isRobust = false,
  connected?: readonly string[],
): { membership: Membership; set: (next: Others) => void } {
  let records = others
  const state: Pick<SharedState, 'members'> = {
    members: () =>
      Object.entries({ ...records, [SELF]: {} })
        .map(([peer, record]) => ({ peer, record: { ...RECORD, ...record }, ageMs: 0 }))
        .sort((a, b) => (a.peer < b.peer ? -1 : 1)),
  }
  return {
    membership: createMembership(SELF, state, {
      staleness: STALENESS,
      isRobust,
      isExact: connected !== undefined,
      connected: () => connected ?? [],
    }),
    set: (next) => void (records = next),
  }
}

const at = (outerStep: number, tokens = 0): Partial<PeerRecord> => ({ outerStep, tokens })
const peers = (members: readonly { peer: string }[]): string =>
  members.map(({ peer }) => peer).join('')

describe('those to average with', () => {
  test('train, and are near; of the others some will come', () => {
    const { membership } = membershipOf({
      a: at(10),
      b: at(18),
      c: at(1),
      d: at(19),
      e: { ...at(10), status: 'leaving' },
      f: { ...at(10), status: 'joining' },
      g: { ...at(10), status: 'silent' },
      h: { ...at(10), status: 'waiting' },
    })
    expect(peers(membership.trainers(10))).toBe('abgh')
    expect(peers(membership.trainers(10, 9))).toBe('abcdgh')
    expect(membership.others()).toHaveLength(8)
  })

  test('are not those who did not answer, until their record moves', () => {
    const { membership, set } = membershipOf({ a: at(4), b: at(4) })
    membership.doubt('a')
    membership.doubt('nobody')
    expect(peers(membership.trainers(4))).toBe('b')
    set({ a: at(4, 100), b: at(4) })
    expect(peers(membership.trainers(4))).toBe('b')
    set({ a: at(5), b: at(4) })
    expect(peers(membership.trainers(4))).toBe('ab')
  })

  test('are also those who have come back', () => {
    const { membership } = membershipOf({ a: at(4), b: at(4) })
    membership.doubt('a')
    membership.trust('a')
    membership.trust('b')
    expect(peers(membership.trainers(4))).toBe('ab')
  })

  test('in a merge are also those doubted ones who wait for it', () => {
    const { membership, set } = membershipOf({ a: at(4), b: at(4) })
    membership.doubt('a')
    membership.doubt('b')
    expect(membership.mergers()).toEqual([])
    set({ a: { ...at(4), status: 'merging' }, b: at(4) })
    expect(membership.mergers()).toEqual(['a'])
  })
})

describe('where the swarm is', () => {
  test('is told by its median, and alone one is neither ahead nor behind', () => {
    expect(membershipOf({}).membership.lag(7)).toBe(0)
    const { membership } = membershipOf({ a: at(3), b: at(9), c: at(5) })
    expect(membership.lag(5)).toBe(0)
    expect(membership.lag(2)).toBe(3)
    expect(membership.lag(9)).toBe(-4)
  })

  test('is out of touch once its front is further ahead than partners may be', () => {
    const { membership } = membershipOf({ a: at(12), b: at(3), c: at(3), d: at(3) })
    expect(membership.front(10)).toEqual([])
    expect(peers(membership.front(9))).toBe('a')
  })

  test('is not told by one that runs ahead of many', () => {
    const others = Object.fromEntries('bcdefgh'.split('').map((peer) => [peer, at(10)]))
    const { membership, set } = membershipOf({ ...others, a: at(90) })
    expect(membership.front(10)).toEqual([])
    // Two of seven are enough, and not those who run ahead of them.
    set({ ...others, a: at(90), b: at(50), c: at(50) })
    expect(peers(membership.front(10))).toBe('bc')
  })

  test('is behind a peer that ran ahead of many, once nobody is near', () => {
    const others = Object.fromEntries('bcdef'.split('').map((peer) => [peer, at(10)]))
    const { membership, set } = membershipOf(others)
    // Eight steps are near: its rounds wait for them.
    expect(membership.front(18)).toEqual([])
    expect(peers(membership.front(19))).toBe('bcdef')
    expect(peers(membership.front(1000))).toBe('bcdef')
    // Of two that are together each has company, and others that follow them.
    set({ ...others, a: at(1000) })
    expect(membership.front(1000)).toEqual([])
    // Four follow the foremost.
    set({ b: at(10), c: at(10), d: at(10), e: at(10) })
    expect(membership.front(1000)).toEqual([])
  })

  test('is told by those that can be heard, if any can', () => {
    const others = { a: at(90), b: at(90), c: at(20), d: at(20) }
    const { membership: deaf } = membershipOf(others, false, ['stranger'])
    expect(deaf.lag(10)).toBe(10)
    expect(peers(deaf.front(10))).toBe('ab')
    const { membership } = membershipOf(others, false, ['c', 'stranger'])
    expect(peers(membership.front(10))).toBe('c')
    expect(membership.lag(90)).toBe(-70)
  })

  test('is where the foremost is in an all-reduce run, which nobody goes back from', () => {
    const many = Object.fromEntries('bcdefgh'.split('').map((peer) => [peer, at(10)]))
    const heard = 'abcdefgh'.split('')
    const { membership } = membershipOf({ ...many, a: at(90) }, false, heard)
    expect(peers(membership.front(10))).toBe('a')
    expect(membershipOf(many, false, heard).membership.front(90)).toEqual([])
  })

  test('is told by one of three in a plain run, by no less than two together in a robust one', () => {
    const others = { a: at(90), b: at(10), c: at(10) }
    expect(peers(membershipOf(others).membership.front(5))).toBe('a')
    const { membership, set } = membershipOf(others, true)
    expect(membership.front(10)).toEqual([])
    // The liar cannot hide the front either.
    expect(peers(membership.front(5))).toBe('bc')
    set({ ...others, b: at(20) })
    expect(membership.front(10)).toEqual([])
    set({ ...others, a: at(21), b: at(20) })
    expect(peers(membership.front(10))).toBe('ab')
    // A swarm of three is too small for a vote.
    set({ a: at(90), b: at(10) })
    expect(peers(membership.front(10))).toBe('a')
  })
})

describe('work since two were in step', () => {
  test('counts from there, on both sides', () => {
    const { membership, set } = membershipOf({ a: at(10, 1000), b: at(10, 2000) })
    membership.noteInStep(10, 500)
    // Still in step by the clock, so it counts from here.
    set({ a: at(11, 1100), b: at(11, 2100) })
    membership.noteInStep(11, 600)
    set({ a: at(20, 2000), b: at(20, 3000) })
    const ahead = membership.front(15)
    expect(peers(ahead)).toBe('ab')
    // 450 against 900; they are two of three.
    const { tokens, share } = membership.workSince(ahead, 1050)
    expect(tokens).toBe(450)
    expect(share).toBeCloseTo(450 / ((2 / 3) * 900 + (1 / 3) * 450), 9)
  })

  test('is all or nothing for who trained as much, or did not train', () => {
    const { membership, set } = membershipOf({ a: at(10), b: at(10) })
    membership.noteInStep(10, 0)
    set({ a: at(20, 1000), b: at(20, 1000) })
    const ahead = membership.front(10)
    expect(membership.workSince(ahead, 0)).toEqual({ tokens: 0, share: 0 })
    expect(membership.workSince(ahead, 1000).share).toBe(1)
    expect(membership.workSince(ahead, 5000).share).toBe(1)
  })

  test('is unknown against those never met, and only those in the same state count as met', () => {
    const { membership, set } = membershipOf({ a: at(10), b: at(10) })
    membership.noteInStep(10, 0, ['b'])
    set({ a: at(20, 1000) })
    expect(membership.workSince(membership.front(10), 1000)).toEqual({ tokens: 0, share: null })
    set({ b: at(20, 1000) })
    expect(membership.workSince(membership.front(10), 1000)).toEqual({ tokens: 1000, share: 1 })
  })
})
