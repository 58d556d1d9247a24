import { describe, expect, test } from 'vitest'
import { sampleToken } from '../../../src/model/generate.ts'
import { seededRandom } from '../../../src/random.ts'

const logits = Float32Array.from([0.1, 0.3, 0.4, 0.2].map(Math.log))

/** How often each token comes in `draws` draws. */
function frequencies(options: { temperature: number; topK: number }, draws = 20_000): number[] {
  const random = seededRandom('draws')
  const counts = Array.from(logits, () => 0)
  for (let draw = 0; draw < draws; draw += 1) counts[sampleToken(logits, options, random)]! += 1
  return counts.map((count) => count / draws)
}

describe('sampleToken', () => {
  test('draws from the distribution', () => {
    frequencies({ temperature: 1, topK: 0 }).forEach((share, token) => {
      expect(share).toBeCloseTo([0.1, 0.3, 0.4, 0.2][token]!, 1.5)
    })
  })

  test('a lower temperature sharpens it', () => {
    const squares = [0.01, 0.09, 0.16, 0.04].map((share) => share / 0.3)
    frequencies({ temperature: 0.5, topK: 0 }).forEach((share, token) => {
      expect(share).toBeCloseTo(squares[token]!, 1.5)
    })
  })

  test('top-k leaves the rest out', () => {
    const shares = frequencies({ temperature: 1, topK: 2 })
    expect(shares[0]).toBe(0)
    expect(shares[3]).toBe(0)
    expect(shares[2]).toBeCloseTo(0.4 / 0.7, 1.5)
    expect(frequencies({ temperature: 1, topK: 99 }, 1000).every((share) => share > 0)).toBe(true)
  })

  test('temperature 0 takes the most likely token, the lower one of two', () => {
    const random = seededRandom('greedy')
    expect(sampleToken(logits, { temperature: 0, topK: 0 }, random)).toBe(2)
    expect(sampleToken(Float32Array.of(1, 5, 5), { temperature: 0, topK: 0 }, random)).toBe(1)
  })

  test('the same seed draws the same tokens', () => {
    const draw = (seed: string): number[] => {
      const random = seededRandom(seed)
      const options = { temperature: 1, topK: 0 }
      return Array.from({ length: 50 }, () => sampleToken(logits, options, random))
    }
    expect(draw('a')).toEqual(draw('a'))
    expect(draw('a')).not.toEqual(draw('b'))
  })

  test('stands huge logits and refuses those that are not numbers', () => {
    const random = seededRandom('huge')
    const options = { temperature: 0.01, topK: 0 }
    expect(sampleToken(Float32Array.of(-1e30, 1e30), options, random)).toBe(1)
    expect(() => sampleToken(Float32Array.of(0, Number.NaN), options, random)).toThrow(
      expect.objectContaining({ code: 'engine_failed' }),
    )
  })
})
