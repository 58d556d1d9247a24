import { describe, expect, test } from 'vitest'
import {
  liveLines,
  lossCurve,
  recordLosses,
  stepLine,
  type LossHistory,
} from '../../../../scripts/demo/live-view.ts'
import { frame } from './frames.ts'

describe('loss history', () => {
  test('tells of each outer step of each peer once', () => {
    const history: LossHistory = new Map()
    const labels = (frames: ReturnType<typeof frame>[]): string[] =>
      recordLosses(history, frames).map(({ label }) => label)
    expect(labels([frame(1), frame(2)])).toEqual([])
    expect(labels([frame(1, { outerStep: 1, loss: 3 }), frame(2)])).toEqual(['1'])
    const later = [frame(1, { outerStep: 1, loss: 3 }), frame(2, { outerStep: 1, loss: 2 })]
    expect(labels(later)).toEqual(['2'])
    expect(labels(later)).toEqual([])
  })

  test('averages over the peers of a step, in the order of steps', () => {
    const history: LossHistory = new Map()
    recordLosses(history, [frame(1, { outerStep: 2, loss: 1 })])
    recordLosses(history, [
      frame(2, { outerStep: 1, loss: 4 }),
      frame(3, { outerStep: 1, loss: 2 }),
    ])
    expect(lossCurve(history)).toEqual([3, 1])
  })
})

describe('what is shown', () => {
  const frames = [
    frame(1, { outerStep: 3, innerStep: 7, loss: 2.5, tokensPerSecond: 4321 }, [3, 2]),
    frame(2, { outerStep: 2, loss: 2.6, consensusDistance: 0.02 }, []),
    frame(3, { consensusDistance: 0.04 }),
  ]
  const [first, second] = frames

  test('a line names step, loss, speed, partners, distance and bytes', () => {
    const line = first === undefined ? '' : stepLine(first, frames)
    expect(line).toContain('peer 1')
    expect(line).toContain('outer step 3/10')
    expect(line).toContain('loss 2.5000')
    expect(line).toContain('4 321 tokens/s')
    expect(line).toContain('averaged with 2 3')
    expect(line).toContain('sent 1.00 kB')
    expect(line).toContain('received 500 B')
    expect(second === undefined ? '' : stepLine(second, frames)).toContain('solo')
  })

  test('the picture has a row per peer, the mean distance and the curve', () => {
    const history: LossHistory = new Map()
    recordLosses(history, frames)
    const lines = liveLines(frames, history, 61_000)
    expect(lines[0]).toBe('3 peers, 10 outer steps, 1 min 1 s')
    expect(lines.filter((line) => line.includes('training '))).toHaveLength(4)
    expect(lines).toContain('consensus distance 0.0300')
    expect(lines.at(-6)).toContain('2.600')
    expect(lines.at(-1)).toContain('2.500')
  })

  test('the picture stands before anything is known', () => {
    expect(liveLines([frame(1), frame(2)], new Map(), 0)).toContain('consensus distance -')
  })
})
