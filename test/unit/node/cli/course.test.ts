import { describe, expect, test } from 'vitest'
import { createCourse, eventLine } from '../../../../node/cli/course.ts'
import type { RunHistory } from '../../../../src/run/history.ts'
import type { RunEvent } from '../../../../src/run/view.ts'

const PEER = '12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf'
const timeMs = new Date(2026, 10, 21, 3, 4, 5).getTime()
const line = (event: RunEvent): string => eventLine({ number: 1, timeMs, event })

function history(newest: number, ...losses: [outerStep: number, loss: number][]): RunHistory {
  const steps = losses.map(([outerStep, loss]) => {
    const round = { outcome: 'solo' as const, partners: [], durationMs: 1 }
    const figures = { tokens: 1, tokensPerSecond: 1, consensusDistance: null }
    return Object.assign(round, figures, {
      outerStep,
      loss,
      timeMs,
      bytesSent: 0,
      bytesReceived: 0,
    })
  })
  return { newest, steps, validations: [], members: [] }
}

describe('a course', () => {
  test('is nothing before there is a curve', () => {
    const course = createCourse()
    expect(course.lines()).toEqual([])
    course.add(history(4, [1, 2]))
    expect({ newest: course.newest, lines: course.lines() }).toEqual({ newest: 4, lines: [] })
  })

  test('grows by what is new, and keeps its place when there is nothing', () => {
    const course = createCourse()
    course.add(history(4, [1, 3], [2, 2]))
    course.add(history(0))
    course.add(history(9, [2, 2.5], [3, 1]))
    expect(course.newest).toBe(9)
    const [, title, ...rows] = course.lines()
    expect(title).toBe('training loss, outer steps 1 to 3')
    expect(rows).toHaveLength(6)
    expect(rows[0]).toMatch(/^3\.000 █/)
    expect(rows.at(-1)).toMatch(/^1\.000 /)
  })
})

describe('an event', () => {
  test('is one line that begins with its time', () => {
    expect(line({ type: 'run_status', run: 'r', status: 'merging', outerStep: 7 })).toBe(
      '2026-11-21 03:04:05  merging, after 7 outer steps',
    )
    expect(line({ type: 'member', run: 'r', peer: PEER, change: 'left' })).toContain(
      '…rMLvKXtf has left',
    )
    const failed: RunEvent = { type: 'run_failed', run: 'r', code: 'timeout', message: 'too late' }
    expect(line(failed)).toContain('failed: too late (timeout)')
  })

  test('of an outer step tells all that came of it', () => {
    const event: RunEvent = {
      type: 'outer_step',
      run: 'r',
      outerStep: 3,
      loss: 2.34567,
      tokens: 12_345,
      tokensPerSecond: 100.4,
      consensusDistance: 0.01,
      round: {
        outerStep: 2,
        outcome: 'averaged',
        partners: [PEER],
        durationMs: 1500,
        bytesSent: 2_000_000,
        bytesReceived: 1000,
        reasons: ['late'],
      },
    }
    expect(line(event)).toMatch(
      /outer step 3 {2}loss 2\.3457 {2}distance 0\.0100 {2}12 345 tokens {2}100 tokens\/s {2}sent 2\.00 MB {2}received 1\.00 kB {2}averaged with …\w{8} in 1 s \(late\)$/,
    )
  })
})
