import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { seededRandom } from '../../../src/random.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import { createDefence, type Defence } from '../../../src/run/defence.ts'
import { averagingSchema } from '../../../src/run/manifest.ts'
import { contributionOf } from '../../../src/run/outer-update.ts'
import type { Trainer } from '../../../src/run/trainer.ts'
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

interface Judge {
  defence: Defence
  evaluate: Trainer['evaluate']
  /** What the batches of each probe were drawn by. */
  samples: (string | undefined)[]
}

/** The loss is the distance to where all want to go. */
function createJudge(secret = 'a secret'): Judge {
  const samples: (string | undefined)[] = []
  return {
    defence: createDefence({ self: 'b', secret, clock: systemClock }),
    samples,
    evaluate: async ({ parameters: probed = parameters, sample } = {}) => {
      samples.push(sample)
      return { loss: distance(probed, target) / norm(goal), tokens: 1 }
    },
  }
}

const verdictsOf = async (
  { defence, evaluate }: Omit<Judge, 'samples'>,
  others: readonly Contribution[],
  outerStep = 0,
): Promise<Record<string, string>> => {
  const contributions = [await give('b', honest('b', outerStep)), ...others]
  const round = { outer: outer(), outerStep, contributions, evaluate }
  const { accepted, rejected } = await defence.judge(round, signal)
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
    const judge = createJudge()
    for (let outerStep = 0; outerStep < 4; outerStep++) {
      const others = [
        await give('a', honest('a', outerStep), near(0.01)),
        await give('c', honest('c', outerStep), near(0.01)),
      ]
      expect(await verdictsOf(judge, others, outerStep)).toEqual({
        a: 'accepted',
        b: 'accepted',
        c: 'accepted',
      })
    }
    const contributions = [
      await give('b', honest('b', 9)),
      await give('c', scaled(honest('c', 9), 1.4), near(0.01)),
      await give('d', honest('d', 9), near(0.04)),
    ]
    const { defence, evaluate } = judge
    const round = { outer: outer(), outerStep: 9, contributions, evaluate }
    const { factors } = await defence.judge(round, signal)
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
    const others = [await give('c', lie()), await give('d', honest('d'))]
    expect(await verdictsOf(createJudge(), others)).toEqual({
      b: 'accepted',
      c: verdict,
      d: 'accepted',
    })
  })

  test('rejects parameters that are no use', async () => {
    const others = [await give('c', honest('c'), vector('elsewhere', 0.5))]
    expect(await verdictsOf(createJudge(), others)).toEqual({ b: 'accepted', c: 'probe' })
  })

  test('probes all of a round on the same batches, each round on others, that only its secret tells', async () => {
    const judgedBy = async (secret?: string): Promise<(string | undefined)[]> => {
      const judge = createJudge(secret)
      for (const outerStep of [0, 1]) {
        const others = [await give('a', honest('a')), await give('c', honest('c'))]
        await verdictsOf(judge, others, outerStep)
      }
      return judge.samples
    }
    const samples = await judgedBy()
    // The own parameters and those of two others, in two rounds.
    const [first, second] = [samples[0], samples[3]]
    expect(samples).toEqual([first, first, first, second, second, second])
    expect(first).not.toBe(second)
    // A swarm that is replayed from its seed draws the same; who knows all but the secret does not.
    expect(await judgedBy()).toEqual(samples)
    for (const sample of await judgedBy('another secret')) expect(samples).not.toContain(sample)
    expect(samples.join(' ')).not.toContain('a secret')
  })

  test('leaves out for a while who was rejected again and again, without another test', async () => {
    const judge = createJudge()
    const lie = await give('c', vector('noise', 1))
    const verdicts: string[] = []
    const probes: number[] = []
    for (let outerStep = 0; outerStep < 30; outerStep++) {
      verdicts.push((await verdictsOf(judge, [lie], outerStep))['c'] ?? '')
      probes.push(judge.samples.length)
    }
    const first = verdicts.indexOf('reputation')
    expect(first).toBe(6)
    expect(verdicts.slice(first, first + 20)).toEqual(
      Array.from({ length: 20 }, () => 'reputation'),
    )
    expect(probes[first + 19]).toBe(probes[first - 1])
    expect(verdicts[first + 20]).toBe('probe')
  })

  test('remembers a liar over a restart, and not what was before it met one anew', async () => {
    const before = createJudge()
    const lie = await give('c', vector('noise', 1))
    const others = async () => [await give('a', honest('a')), lie]
    for (let outerStep = 0; outerStep < 6; outerStep++) {
      await verdictsOf(before, await others(), outerStep)
    }
    const stored = before.defence.reputations()
    expect(stored.map(({ peer }) => peer)).toEqual(['c'])
    const after = createJudge()
    after.defence.restore(stored)
    expect(await verdictsOf(after, await others(), 6)).toMatchObject({ c: 'reputation' })
    // What is stored is older than what this life has seen.
    after.defence.restore([{ peer: 'c', value: 1, ignoredUntil: 0 }])
    expect(await verdictsOf(after, await others(), 7)).toMatchObject({ c: 'reputation' })
  })
})
