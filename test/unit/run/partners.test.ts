import { assert, constantFrom, integer, property } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { mergeGroups } from '../../../src/run/merge.ts'
import { groupsOf, partnersOf, shuffledMembers } from '../../../src/run/partners.ts'

const peers = (count: number): string[] => Array.from({ length: count }, (_, i) => `peer-${i}`)

describe('groupsOf', () => {
  test('cuts every swarm into disjoint groups that hold everybody once', () => {
    assert(
      property(
        integer({ min: 1, max: 70 }),
        integer({ min: 0, max: 100 }),
        integer({ min: 2, max: 9 }),
        (count, step, size) => {
          const groups = groupsOf('run', step, peers(count), size)
          expect(groups.flat().sort()).toEqual(peers(count).sort())
          for (const group of groups) {
            expect(group.length).toBeLessThanOrEqual(size + 1)
            if (count > 1) expect(group.length).toBeGreaterThan(1)
          }
        },
      ),
    )
  })

  test('pairs below 8 peers, groups of four from 8 on', () => {
    expect(groupsOf('run', 0, peers(6), 0).map((group) => group.length)).toEqual([2, 2, 2])
    expect(groupsOf('run', 0, peers(7), 0).map((group) => group.length)).toEqual([2, 2, 3])
    expect(groupsOf('run', 0, peers(8), 0).map((group) => group.length)).toEqual([4, 4])
  })

  test('does not depend on the order of the view', () => {
    expect(groupsOf('run', 3, peers(10).toReversed(), 4)).toEqual(groupsOf('run', 3, peers(10), 4))
  })

  test('draws a new matching each step and each run', () => {
    expect(shuffledMembers('run', 1, peers(20))).not.toEqual(shuffledMembers('run', 2, peers(20)))
    expect(shuffledMembers('run', 1, peers(20))).not.toEqual(shuffledMembers('other', 1, peers(20)))
  })

  test('meets everybody in time: over 200 steps each pair of 8 peers is drawn close to its share', () => {
    const met = new Map<string, number>()
    for (let step = 0; step < 200; step++) {
      for (const group of groupsOf('run', step, peers(8), 2)) {
        const pair = [...group].sort().join()
        met.set(pair, (met.get(pair) ?? 0) + 1)
      }
    }
    // 200 steps of 4 pairs over 28 possible pairs: 28.6 expected, standard deviation 5.
    expect(met.size).toBe(28)
    expect(Math.min(...met.values())).toBeGreaterThan(8)
    expect(Math.max(...met.values())).toBeLessThan(52)
  })
})

describe('partnersOf', () => {
  test('is mutual: my partner has me as partner', () => {
    assert(
      property(
        integer({ min: 2, max: 20 }),
        integer({ min: 0, max: 50 }),
        constantFrom(0, 2, 4),
        (count, step, size) => {
          for (const self of peers(count)) {
            for (const other of partnersOf(self, 'run', step, peers(count), size).group) {
              expect(partnersOf(other, 'run', step, peers(count), size).group).toContain(self)
            }
          }
        },
      ),
    )
  })

  test('lists everybody outside the group as candidates, never oneself', () => {
    const { group, candidates } = partnersOf('peer-3', 'run', 1, peers(9), 4)
    expect([...group, ...candidates, 'peer-3'].sort()).toEqual(peers(9).sort())
  })

  test('a lone peer has nobody', () => {
    expect(partnersOf('peer-0', 'run', 0, [], 0)).toEqual({ group: [], candidates: [] })
  })
})

describe('mergeGroups', () => {
  test('32 replicas or fewer merge all-to-all in one stage', () => {
    expect(mergeGroups('peer-0', 'run', 9, peers(32))).toEqual([peers(32).slice(1).sort()])
  })

  test('more lie on a grid: row and column together reach everybody', () => {
    const members = peers(50)
    const rowOf = (self: string): string[] => [
      self,
      ...(mergeGroups(self, 'run', 9, members)[0] ?? []),
    ]
    for (const self of members) {
      const [, column = []] = mergeGroups(self, 'run', 9, members)
      const reached = new Set([self, ...column].flatMap(rowOf))
      // The last, shorter row may leave columns without one member; nobody else is ever out of reach.
      expect(reached.size).toBeGreaterThanOrEqual(48)
    }
  })
})
