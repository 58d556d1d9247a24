import { expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { throughputOf } from '../../../src/run/throughput.ts'
import { runEventSchema } from '../../../src/run/view.ts'
import { blankRecord } from '../../../src/state/record.ts'
import type { PeerRecord } from '../../../src/state/record.ts'
import type { Member } from '../../../src/state/shared-state.ts'

const member = (
  peer: string,
  tokensPerSecond: number,
  status: PeerRecord['status'] = 'training',
): Member => ({ peer, record: { ...blankRecord(status), tokensPerSecond }, ageMs: 0 })

test('is that of all who train, and of each', () => {
  const others = [member('b', 20), member('a', 10, 'merging'), member('c', 40, 'silent')]
  expect(throughputOf(5.4, others)).toEqual({ together: 35, others: { a: 10, b: 20 } })
  expect(throughputOf(5, [])).toEqual({ together: 5, others: {} })
})

test('of a large swarm is the sum of all, and of each of the same few', () => {
  const names = Array.from({ length: 100 }, (_, index) => `peer-${String(index).padStart(3, '0')}`)
  const all = names.map((peer) => member(peer, 1))
  const { together, others } = throughputOf(0, all.toReversed())
  expect(together).toBe(100)
  expect(Object.keys(others)).toEqual(names.slice(0, LIMITS.chartedPeers))
})

test('stays a number, whatever peers claim', () => {
  const liars = ['a', 'b', 'c'].map((peer) => member(peer, Number.MAX_VALUE))
  const throughput = throughputOf(1, liars)
  const round = { outerStep: 0, outcome: 'solo' as const, partners: [], durationMs: 1 }
  const counts = { bytesSent: 0, bytesReceived: 0, reasons: [] }
  const figures = { loss: 1, tokens: 1, tokensPerSecond: 1, consensusDistance: null }
  const event = { type: 'outer_step', run: 'r', outerStep: 1, ...figures, throughput }
  const sent = JSON.parse(JSON.stringify({ ...event, round: { ...round, ...counts } }))
  expect(runEventSchema.parse(sent)).toMatchObject({ throughput })
})
