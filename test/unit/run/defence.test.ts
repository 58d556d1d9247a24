import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { seededRandom } from '../../../src/random.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import { createDefence, type Defence } from '../../../src/run/defence.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import { contributionOf } from '../../../src/run/outer-update.ts'
import { distance, norm, scaleInPlace } from '../../../src/tensor/vector.ts'

const ELEMENTS = 5_000
const averaging = averagingSchema.parse({
  pseudoGradientCodec: 'fp32',
  parametersCodec: 'fp32',
  defence: 'robust',
})
const { signal } = new AbortController()

const vector = (name: string, scale: number): Float32Array => {
  const random = seededRandom('defence', name)
  return Float32Array.from({ length: ELEMENTS }, () => scale * random.normal())
}

const near = (apart: number): Float32Array => {
  const noise = vector('apart', apart)
  return parameters.map((value, index) => value + noise[index]!)
}

/** Where all want to go, and where they stand. */
const goal = vector('goal', 0.05)
const parameters = vector('parameters', 0.5)
const target = parameters.map((value, index) => value - goal[index]!)

/** Towards the goal, with an error of its own that is as long. */
const honest = (peer: string, step = 0): Float32Array =>
  vector(`${peer} ${step}`, 0.05).map((value, index) => value + goal[index]!)

const outer = () => ({ parameters: parameters.slice(), momentum: new Float32Array(ELEMENTS) })

const give = (
  peer: string,
  pseudoGradient: Float32Array,
  from: Float32Array = parameters,
): Promise<Contribution> =>
  contributionOf(
    {
      averaging,
      outer: { ...outer(), parameters: from },
      peer,
      run: 'run',
      outerStep: 0,
      schemaHash: 'a'.repeat(64),
      weight: 100,
      pseudoGradient,
    },
    systemClock,
  )

/** The loss is the distance to where all want to go. */
function createJudge(): { defence: Defence; samples: (string | undefined)[] } {
  const samples: (string | undefined)[] = []
  const defence = createDefence({
    self: 'b',
    run: 'run',
    clock: systemClock,
    evaluate: async ({ parameters: probed = parameters, sample } = {}) => {
      samples.push(sample)
      return { loss: distance(probed, target) / norm(goal), tokens: 1 }
    },
  })
  return { defence, samples }
}

const verdictsOf = async (
  defence: Defence,
  others: readonly Contribution[],
  outerStep = 0,
): Promise<Record<string, string>> => {
  const contributions = [await give('b', honest('b', outerStep)), ...others]
  const { accepted, rejected } = await defence.judge(
    { outer: outer(), outerStep, contributions },
    signal,
  )
  return Object.fromEntries([
    ...accepted.map(({ peer }) => [peer, 'accepted']),
    ...rejected.map(({ peer, verdict }) => [peer, verdict]),
  ])
}

const scaled = (values: Float32Array, factor: number): Float32Array => {
  scaleInPlace(values, factor)
  return values
}

describe('a robust peer', () => {
  test('accepts honest contributions, clipped to what is usual', async () => {
    const { defence, samples } = createJudge()
    for (let outerStep = 0; outerStep < 4; outerStep++) {
      const others = [
        await give('a', honest('a', outerStep), near(0.01)),
        await give('c', honest('c', outerStep), near(0.01)),
      ]
      expect(await verdictsOf(defence, others, outerStep)).toEqual({
        a: 'accepted',
        b: 'accepted',
        c: 'accepted',
      })
    }
    // Nobody can know a round's batches before, and no two peers have the same.
    expect(new Set(samples)).toEqual(new Set(['run b 0', 'run b 1', 'run b 2', 'run b 3']))
    const contributions = [
      await give('b', honest('b', 9)),
      await give('c', scaled(honest('c', 9), 1.4), near(0.01)),
      await give('d', honest('d', 9), near(0.04)),
    ]
    const { factors } = await defence.judge({ outer: outer(), outerStep: 9, contributions }, signal)
    // Louder than usual, and four times as far away where twice is tolerated.
    expect(factors.get('c')?.pseudoGradient).toBeLessThan(0.85)
    expect(factors.get('c')?.parameters).toBe(1)
    expect(factors.get('d')?.pseudoGradient).toBeGreaterThan(0.9)
    expect(factors.get('d')?.parameters).toBeCloseTo(0.5, 2)
    expect(factors.has('b')).toBe(false)
  })

  test.each([
    ['the wrong way, loudly', () => scaled(honest('c'), -5), 'direction'],
    ['noise, loudly', () => vector('noise', 1), 'probe'],
    ['far too much of it', () => scaled(honest('c'), 50), 'probe'],
  ])('rejects %s', async (_, lie, verdict) => {
    const { defence } = createJudge()
    const others = [await give('c', lie()), await give('d', honest('d'))]
    expect(await verdictsOf(defence, others)).toEqual({ b: 'accepted', c: verdict, d: 'accepted' })
  })

  test('rejects parameters that are no use', async () => {
    const { defence } = createJudge()
    const others = [await give('c', honest('c'), vector('elsewhere', 0.5))]
    expect(await verdictsOf(defence, others)).toEqual({ b: 'accepted', c: 'probe' })
  })

  test('leaves out for a while who was rejected again and again, without another test', async () => {
    const { defence, samples } = createJudge()
    const lie = await give('c', vector('noise', 1))
    const verdicts: string[] = []
    for (let outerStep = 0; outerStep < 30; outerStep++) {
      verdicts.push((await verdictsOf(defence, [lie], outerStep))['c'] ?? '')
    }
    const first = verdicts.indexOf('reputation')
    expect(first).toBe(6)
    expect(verdicts.slice(first, first + 20)).toEqual(
      Array.from({ length: 20 }, () => 'reputation'),
    )
    expect(verdicts[first + 20]).toBe('probe')
    expect(samples.filter((sample) => sample === `run b ${first}`)).toEqual([])
  })
})
