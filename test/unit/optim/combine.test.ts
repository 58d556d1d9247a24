import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  centeredClip,
  clipFactor,
  clipL2,
  clippedGossip,
  coordinateMedian,
  normalizedWeights,
  trimmedMean,
  weightedMean,
} from '../../../src/optim/combine.ts'
import { norm } from '../../../src/tensor/vector.ts'
import robust from '../../vectors/robust_aggregation.json' with { type: 'json' }
import { expectClose, floats } from '../oracle.ts'

const { tolerance } = robust
const vectors = robust.xs.map(floats)

describe('robust aggregation', () => {
  test('medians of an even and an odd number hit the vectors', () => {
    expectClose(coordinateMedian(vectors), robust.median, tolerance)
    expectClose(coordinateMedian(vectors.slice(0, 5)), robust.median_odd, tolerance)
  })

  test('trimmed means hit the vectors', () => {
    expectClose(trimmedMean(vectors, 1), robust.trimmed_mean_b1, tolerance)
    expectClose(trimmedMean(vectors, 2), robust.trimmed_mean_b2, tolerance)
  })

  test.each(robust.centered_clip)(
    'centered clipping hits the vectors: radius $tau, $iters iterations',
    ({ tau, iters, out }) => {
      const center = floats(robust.v0)
      expectClose(centeredClip(vectors, center, tau, iters), out, tolerance)
      expect(center).toEqual(floats(robust.v0))
    },
  )

  test.each(robust.clip_l2)('clipL2 hits the vectors: radius $tau', ({ v, tau, out }) => {
    expectClose(clipL2(floats(v), tau), out, tolerance)
  })

  test.each(robust.clipped_gossip)(
    'ClippedGossip hits the vectors: radius $tau',
    ({ x, neighbours, w_self, w_neigh, tau, out }) => {
      const weights = { own: w_self, neighbours: w_neigh }
      expectClose(clippedGossip(floats(x), neighbours.map(floats), weights, tau), out, tolerance)
    },
  )

  test('a trimmed mean lies between the honest values whatever the liars send', () => {
    const value = fc.float({ noNaN: true, noDefaultInfinity: true, min: -1e6, max: 1e6 })
    fc.assert(
      fc.property(
        fc.array(value, { minLength: 3, maxLength: 9 }),
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { maxLength: 1 }),
        (honest, liars) => {
          const all = [...honest, ...liars].map((element) => floats([element]))
          const [mean] = trimmedMean(all, 1)
          expect(mean).toBeGreaterThanOrEqual(Math.min(...honest))
          expect(mean).toBeLessThanOrEqual(Math.max(...honest))
        },
      ),
    )
  })

  test('trimming everything away is refused', () => {
    expect(() => trimmedMean(vectors.slice(0, 2), 1)).toThrow(/cannot trim 1 of 2/)
    expect(() => trimmedMean([], 0)).toThrow(/cannot trim 0 of 0/)
  })
})

describe('weightedMean', () => {
  test('weights by tokens of any scale', () => {
    const mean = weightedMean([floats([0, 4]), floats([4, 8])], [300, 100])
    expect(mean).toEqual(floats([1, 5]))
    expect(weightedMean([floats([0, 4]), floats([4, 8])], [3e9, 1e9])).toEqual(mean)
  })

  test('is the plain mean without weights, and of weights that are all zero', () => {
    const pair = [floats([0, 4]), floats([4, 8])]
    expect(weightedMean(pair)).toEqual(floats([2, 6]))
    expect(weightedMean(pair, [0, 0])).toEqual(floats([2, 6]))
  })

  test('may write over one of its inputs', () => {
    const target = floats([0, 4])
    weightedMean([target, floats([4, 8])], [1, 1], target)
    expect(target).toEqual(floats([2, 6]))
  })

  test('refuses vectors of different lengths, and none', () => {
    expect(() => weightedMean([floats([1]), floats([1, 2])])).toThrow(/do not match/)
    expect(() => weightedMean([])).toThrow(/no vectors/)
  })
})

describe('weights', () => {
  test('sum to 1', () => {
    expect(normalizedWeights([100, 50, 0, 50])).toEqual([0.5, 0.25, 0, 0.25])
    expect(normalizedWeights([0, 0])).toEqual([0.5, 0.5])
  })
})

describe('clipFactor', () => {
  test('keeps a vector within the radius', () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, min: -1e6, max: 1e6 }), { minLength: 1, maxLength: 20 }),
        fc.double({ noNaN: true, min: 1e-3, max: 1e6 }),
        (values, radius) => {
          expect(norm(clipL2(floats(values), radius))).toBeLessThanOrEqual(radius * (1 + 1e-6))
        },
      ),
    )
  })

  test('is 1 inside and for the zero vector', () => {
    expect(clipFactor(3, 3)).toBe(1)
    expect(clipFactor(0, 0)).toBe(1)
    expect(clipFactor(6, 3)).toBe(0.5)
  })
})
