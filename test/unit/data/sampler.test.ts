import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { trainingWindows, validationWindows } from '../../../src/data/sampler.ts'

const position = { seed: 'run', stream: 'peer', outerStep: 3, innerStep: 7 }
const shape = { tokens: 100_000, context: 64, sequences: 12 }

describe('trainingWindows', () => {
  test('are the same for the same position, forever', () => {
    expect(trainingWindows(position, shape)).toEqual(trainingWindows({ ...position }, shape))
    // Pinned: a replay on another version must see the same data.
    expect([...trainingWindows(position, { ...shape, sequences: 4 })]).toEqual([
      67841, 47938, 80515, 508,
    ])
  })

  test.each(['seed', 'stream'] as const)('differ by %s', (field) => {
    const other = trainingWindows({ ...position, [field]: 'other' }, shape)
    expect(other).not.toEqual(trainingWindows(position, shape))
  })

  test.each(['outerStep', 'innerStep'] as const)('differ by %s', (field) => {
    const other = trainingWindows({ ...position, [field]: 4 }, shape)
    expect(other).not.toEqual(trainingWindows(position, shape))
  })

  test('drawn by a name are others for another name, and the same for the same', () => {
    const shapeOf = { tokens: 10_000, context: 64, count: 200 }
    const drawn = validationWindows(shapeOf, 'one')
    expect(validationWindows(shapeOf, 'one')).toEqual(drawn)
    expect(validationWindows(shapeOf, 'other')).not.toEqual(drawn)
    expect(Math.max(...drawn)).toBeLessThanOrEqual(10_000 - 65)
    expect(Math.max(...drawn)).toBeGreaterThan(9_000)
  })

  test('lie within the tokens, whatever their number', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 1, max: 200 }),
        fc.nat(),
        (context, surplus, innerStep) => {
          const tokens = context + surplus
          const starts = trainingWindows(
            { ...position, innerStep },
            { tokens, context, sequences: 8 },
          )
          expect(starts.length).toBe(8)
          for (const start of starts) expect(start + context + 1).toBeLessThanOrEqual(tokens)
        },
      ),
    )
  })

  test('reach the whole text evenly', () => {
    const [tokens, context] = [1064, 64]
    const hits = new Uint32Array(10)
    let [first, last] = [Infinity, 0]
    for (let innerStep = 0; innerStep < 2000; innerStep++) {
      const step = { ...position, innerStep }
      for (const start of trainingWindows(step, { tokens, context, sequences: 10 })) {
        hits[Math.floor(start / 100)]!++
        first = Math.min(first, start)
        last = Math.max(last, start)
      }
    }
    expect([first, last]).toEqual([0, tokens - context - 1])
    for (const count of hits) expect(Math.abs(count / 2000 - 1)).toBeLessThan(0.1)
  })

  test('refuse tokens that hold no window', () => {
    expect(() => trainingWindows(position, { ...shape, tokens: 64 })).toThrow(/no window of 65/)
  })
})

describe('validationWindows', () => {
  test('are spread evenly from the first token to the last', () => {
    expect([...validationWindows({ tokens: 101, context: 60, count: 5 })]).toEqual([
      0, 10, 20, 30, 40,
    ])
    expect([...validationWindows({ tokens: 101, context: 60, count: 1 })]).toEqual([0])
    expect([...validationWindows({ tokens: 11, context: 10, count: 3 })]).toEqual([0, 0, 0])
  })

  test('drawn by a name are others for another name, and the same for the same', () => {
    const shapeOf = { tokens: 10_000, context: 64, count: 200 }
    const drawn = validationWindows(shapeOf, 'one')
    expect(validationWindows(shapeOf, 'one')).toEqual(drawn)
    expect(validationWindows(shapeOf, 'other')).not.toEqual(drawn)
    expect(Math.max(...drawn)).toBeLessThanOrEqual(10_000 - 65)
    expect(Math.max(...drawn)).toBeGreaterThan(9_000)
  })

  test('lie within the tokens, whatever their number', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 1, max: 1e6 }),
        fc.integer({ min: 2, max: 100 }),
        (context, surplus, count) => {
          const tokens = context + surplus
          const starts = validationWindows({ tokens, context, count })
          expect(starts[0]).toBe(0)
          expect(starts[count - 1]! + context + 1).toBe(tokens)
          const gaps = [...starts].slice(1).map((start, i) => start - starts[i]!)
          expect(Math.max(...gaps) - Math.min(...gaps)).toBeLessThanOrEqual(1)
        },
      ),
    )
  })
})
