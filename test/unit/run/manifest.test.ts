import { describe, expect, test } from 'vitest'
import { CODEC_IDS, SPARSE_CODEC_IDS } from '../../../src/codec/codec.ts'
import {
  averagingSchema,
  errorFeedbackOf,
  manifestSchema,
  runSpecSchema,
} from '../../../src/run/manifest.ts'
import { smallManifest } from './small-manifest.ts'

type Fields = Record<string, unknown>

const specOf = (averaging: Fields, outerSteps = 1000) =>
  runSpecSchema.safeParse({ data: 'text.txt', outerSteps, averaging })

/** Paths and messages of what is refused. */
const refusals = (averaging: Fields, outerSteps?: number): string[] =>
  (specOf(averaging, outerSteps).error?.issues ?? []).map(
    ({ path, message }) => `${path.join('.')}: ${message}`,
  )

describe('averaging', () => {
  test('the defaults are dense gossip, and name no error feedback: run ids stay what they were', () => {
    expect(runSpecSchema.parse({ data: 'x' }).averaging).toEqual({
      rule: 'gossip-diloco',
      groupSize: 0,
      learningRate: 0.7,
      momentum: 0.8,
      consensus: 0.7,
      pseudoGradientCodec: 'int4-64',
      parametersCodec: 'int8-128',
    })
  })

  test.each([
    [{ rule: 'noloco' }, { momentum: 0.5 }],
    [{ rule: 'noloco', momentum: 0.3 }, { momentum: 0.3 }],
    [{ pseudoGradientCodec: 'topk-1024-int4' }, { rule: 'diloco', momentum: 0.8 }],
    [{ pseudoGradientCodec: 'sparseloco' }, { rule: 'diloco', momentum: 0, learningRate: 1 }],
    [{ pseudoGradientCodec: 'sparseloco', learningRate: 0.65 }, { learningRate: 0.65 }],
    [{ rule: 'adapt-then-combine' }, { momentum: 0.8, parametersCodec: 'int8-128' }],
  ])('%j comes with the published settings', (given, expected) => {
    expect(specOf(given).data?.averaging).toMatchObject(expected)
  })

  test.each([
    ['int4-64', undefined, 0],
    ['int8-128', undefined, 0],
    ['int4-64', 1, 1],
    ['topk-1024-int4', undefined, 1],
    ['topk-64-fp32', undefined, 1],
    ['sparseloco', undefined, 0.95],
    ['sparseloco', 0.999, 0.999],
  ] as const)('error feedback of %s, given %s, is %f', (pseudoGradientCodec, given, beta) => {
    const fields = { pseudoGradientCodec, ...(given !== undefined && { errorFeedback: given }) }
    expect(errorFeedbackOf(averagingSchema.parse(fields))).toBe(beta)
    const alone = averagingSchema.parse({ ...fields, rule: 'adapt-then-combine' })
    expect(errorFeedbackOf(alone)).toBe(0)
  })
})

describe('what is known to fail is refused in a line that names field and remedy', () => {
  test.each(SPARSE_CODEC_IDS)('%s without an all-reduce', (pseudoGradientCodec) => {
    for (const rule of ['gossip-diloco', 'adapt-then-combine', 'noloco'] as const) {
      const [first] = refusals({ pseudoGradientCodec, rule, groupSize: 2 })
      expect(first).toMatch(/^averaging.pseudoGradientCodec: .* is for rule 'diloco'/)
    }
    expect(refusals({ pseudoGradientCodec, rule: 'diloco' })).toEqual([])
  })

  test.each([
    [
      { overlapSteps: 6 },
      'overlapSteps: a correction that comes later than a quarter of the inner steps costs 5 % of the loss and more: use 5 at most',
    ],
    [
      { fragments: 2 },
      "fragments: gossip-diloco sends weights, and weights in turns cost 10 % of the loss: use rule 'diloco' or leave it out",
    ],
    [
      { defence: 'robust', rule: 'adapt-then-combine' },
      "defence: the tests need pseudo-gradients, weights and held-out text: use rule 'gossip-diloco' and a gpt, or leave it out",
    ],
    [
      { fragments: 64, rule: 'diloco' },
      'fragments: 40 outer steps do not exchange all of them: use fewer',
    ],
  ])('%j', (averaging, message) => {
    expect(refusals(averaging, 40)).toEqual([`averaging.${message}`])
  })

  test('overlap where an outside process trains', () => {
    const spec = { model: { kind: 'external' }, from: 'cid', averaging: { overlapSteps: 2 } }
    expect(runSpecSchema.safeParse(spec).error?.issues[0]?.message).toMatch(/whole outer steps/)
  })

  test('sparse codecs whose fragments are exchanged too seldom', () => {
    const averaging = { pseudoGradientCodec: 'topk-256-int8', fragments: 4 }
    expect(refusals(averaging, 399)).toEqual([
      expect.stringMatching(/needs 100 outer steps, not 99/),
    ])
    expect(refusals(averaging, 400)).toEqual([])
  })

  test.each([
    ['topk-256-int8', 100],
    ['topk-64-fp32', 200],
    ['sparseloco', 200],
  ] as const)('%s for less than %i outer steps', (pseudoGradientCodec, steps) => {
    expect(refusals({ pseudoGradientCodec }, steps - 1)).toEqual([
      expect.stringMatching(
        new RegExp(`^averaging.pseudoGradientCodec: .* needs ${steps} outer steps, not`),
      ),
    ])
    expect(refusals({ pseudoGradientCodec }, steps)).toEqual([])
  })

  test.each(['sparseloco', 'topk-64-fp32'] as const)('%s with momentum', (pseudoGradientCodec) => {
    expect(refusals({ pseudoGradientCodec, momentum: 0.8 })).toEqual([
      expect.stringMatching(/^averaging.momentum: .*: use 0$/),
    ])
  })

  test.each(SPARSE_CODEC_IDS)('%s without error feedback', (pseudoGradientCodec) => {
    expect(refusals({ pseudoGradientCodec, errorFeedback: 0 })).toEqual([
      expect.stringMatching(/^averaging.errorFeedback: .* leave errorFeedback out$/),
    ])
  })

  test('slow weights in less than 8 bits', () => {
    for (const parametersCodec of ['int4-64', ...SPARSE_CODEC_IDS]) {
      expect(refusals({ parametersCodec })).toEqual([
        expect.stringMatching(/^averaging.parametersCodec: .*use fp32, fp16 or int8-128$/),
      ])
    }
  })

  test('NoLoCo with more momentum than it is stable with', () => {
    expect(refusals({ rule: 'noloco', momentum: 0.8 })).toEqual([
      expect.stringMatching(/^averaging.momentum: .*NoLoCo diverges: use 0.5$/),
    ])
    expect(refusals({ rule: 'noloco', momentum: 0.8, consensus: 0.9, learningRate: 0.9 })).toEqual(
      [],
    )
  })

  test('dense codecs go with every rule', () => {
    for (const pseudoGradientCodec of CODEC_IDS.slice(0, 4)) {
      for (const rule of ['gossip-diloco', 'adapt-then-combine', 'noloco', 'diloco']) {
        expect(refusals({ pseudoGradientCodec, rule }, 1)).toEqual([])
      }
    }
  })

  test("in another's manifest too", () => {
    const manifest = smallManifest({
      outerSteps: 200,
      averaging: { pseudoGradientCodec: 'sparseloco' },
    })
    expect(manifestSchema.safeParse(manifest).success).toBe(true)
    expect(manifestSchema.safeParse({ ...manifest, outerSteps: 199 }).success).toBe(false)
  })
})
