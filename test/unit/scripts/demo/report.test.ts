import { describe, expect, test } from 'vitest'
import {
  demoResult,
  gapClosed,
  reportLines,
  ringDataParallelBytes,
} from '../../../../scripts/demo/report.ts'
import { frame } from './frames.ts'

const finished = { status: 'finished', tokens: 400, consensusDistance: 0.02 } as const
const frames = [1, 2, 3, 4].map((number) => frame(number, { ...finished, parametersHash: 'abc' }))
const batchTokens = 2
const measured = { batchTokens, elapsedMs: 61_234 }
const losses = { start: 4, merged: 2, baselines: undefined }

describe('ring all-reduce', () => {
  test('sends N - 1 pieces twice, of 1/N of the fp32 vector, at each step', () => {
    for (const peers of [2, 3, 4, 8]) {
      const pieceBytes = (4 * 8400) / peers
      const oneStep = 2 * (peers - 1) * pieceBytes
      expect(ringDataParallelBytes({ peers, parameters: 8400, innerSteps: 5 })).toBeCloseTo(
        5 * oneStep,
        6,
      )
    }
  })

  test('sends nothing with one peer', () => {
    expect(ringDataParallelBytes({ peers: 1, parameters: 8400, innerSteps: 5 })).toBe(0)
  })
})

describe('result', () => {
  test('has exactly the documented fields', () => {
    expect(demoResult(frames, losses, measured)).toEqual({
      peers: 4,
      outerSteps: 10,
      tokens: 1600,
      lossStart: 4,
      lossMerged: 2,
      consensusDistance: 0.02,
      bytesSentPerPeer: 2500,
      bytesDataParallelPerPeer: 2 * (3 / 4) * 4 * 1000 * 200,
      wallSeconds: 61.2,
    })
  })

  test('has the baselines when they were trained', () => {
    const baselines = { alone: 2.5, dataParallel: 1.5 }
    expect(demoResult(frames, { ...losses, baselines }, measured)).toMatchObject({
      lossAlone: 2.5,
      lossDataParallel: 1.5,
    })
  })

  test('closes all of the gap at the loss of data parallel, none at that of one node alone', () => {
    expect(gapClosed(2.5, 1.5, 1.5)).toBe(1)
    expect(gapClosed(2.5, 2.5, 1.5)).toBe(0)
    expect(gapClosed(2.5, 2, 1.5)).toBe(0.5)
  })
})

describe('report', () => {
  const text = (result = demoResult(frames, losses, measured), last = frames): string =>
    reportLines(result, last, batchTokens).join('\n')

  test('prints the formula with the figures put in', () => {
    expect(text()).toContain('2(N - 1)/N x 4 B x parameters x inner steps')
    expect(text()).toContain('2 x 3/4 x 4 x 1 000 x 200')
    expect(text()).toContain('480 times as much')
  })

  test('says whether the peers agree', () => {
    expect(text()).toContain('all peers hold the same parameters')
    const other = [...frames.slice(1), frame(1, { ...finished, parametersHash: 'def' })]
    expect(text(undefined, other)).toContain('2 different sets')
  })

  test('tells of baselines only when there are any', () => {
    expect(text()).not.toContain('alone')
    const baselines = { alone: 2.5, dataParallel: 1.5 }
    expect(text(demoResult(frames, { ...losses, baselines }, measured))).toContain('closed 50 %')
  })
})
