import { expect, test } from 'vitest'
import { createHashVotes } from '../../../src/run/hash-votes.ts'
import { blankRecord, type PeerRecord } from '../../../src/state/record.ts'

function votesOf(): { at: (peer: string, outerStep: number, hash: string) => void } & ReturnType<
  typeof createHashVotes
> {
  const records = new Map<string, PeerRecord>()
  let changed = (): void => {}
  const state = {
    members: () => [...records].map(([peer, record]) => ({ peer, record, ageMs: 0 })),
    onChange(listener: () => void) {
      changed = listener
      return () => {}
    },
  }
  const votes = createHashVotes('self', state)
  return {
    ...votes,
    at(peer, outerStep, parametersHash) {
      records.set(peer, { ...blankRecord('training', outerStep), parametersHash })
      changed()
    },
  }
}

test('the majority is that of those who told of the step, this peer not counted', () => {
  const votes = votesOf()
  expect(votes.majority(3)).toBeUndefined()
  votes.at('a', 3, 'x')
  votes.at('b', 3, 'y')
  votes.at('self', 3, 'x')
  expect(votes.majority(3)).toBeUndefined()
  votes.at('c', 3, 'y')
  votes.at('a', 4, 'z')
  expect(votes.majority(3)).toBe('y')
  expect(votes.majority(4)).toBe('z')
})

test('what a peer said of steps that it went back from counts no more, and displaces nothing', () => {
  const votes = votesOf()
  votes.at('b', 7, 'right')
  for (let step = 1; step <= 100; step++) votes.at('lone', step, 'wrong')
  expect(votes.majority(60)).toBe('wrong')
  votes.at('lone', 7, 'right')
  expect(votes.majority(60)).toBeUndefined()
  votes.at('b', 8, 'next')
  expect(votes.majority(7)).toBe('right')
  expect(votes.majority(8)).toBe('next')
})
