import { sha256 } from '@noble/hashes/sha2.js'
import { bytesToHex } from '@noble/hashes/utils.js'
import { describe, expect, test } from 'vitest'
import {
  evaluationGraph,
  gptSchema,
  gradientName,
  samplingGraph,
  trainingGraph,
  type GptSpec,
} from '../../../src/model/gpt.ts'
import type { Tensor } from '../../../src/model/graph.ts'
import { initialParameters } from '../../../src/model/initial-parameters.ts'
import { seededRandom } from '../../../src/random.ts'
import { float32Bytes } from '../../../src/tensor/float32-bytes.ts'
import type { Schema } from '../../../src/tensor/schema.ts'
import reference from './gpt-reference.json' with { type: 'json' }
import { compileBytes, dot, normalValues, type Values } from './graph-runner.ts'

const SMALL = { layers: 4, heads: 4, embedding: 128, context: 64, vocabulary: 65 }
const BIG = { layers: 6, heads: 6, embedding: 384, context: 256, vocabulary: 65 }
const TINY = { layers: 2, heads: 2, embedding: 12, context: 6, vocabulary: 9 }
const SEQUENCES = 3
const ACTIVATIONS = ['relu-squared', 'gelu'] as const

const inputsOf = (schema: Schema, tokens: number): Tensor[] => [
  { name: 'tokens', type: 'int32', shape: [tokens] },
  { name: 'targets', type: 'int32', shape: [tokens] },
  ...schema.entries.map(({ name, shape }) => ({ name, type: 'float32' as const, shape })),
]

const tensorsOf = ({ entries }: Schema, flat: Float32Array): Values =>
  Object.fromEntries(
    entries.map(({ name, offset, size }) => [name, flat.subarray(offset, offset + size)]),
  )

/** Loss and flat gradient of a model at `parameters`. */
async function compileTraining(
  spec: GptSpec,
): Promise<
  (batch: Values, parameters: Float32Array) => Promise<{ loss: number; gradient: Float32Array }>
> {
  const schema = gptSchema(spec)
  const outputs: Record<string, readonly number[]> = { loss: [] }
  for (const { name, shape } of schema.entries) outputs[gradientName(name)] = shape
  const inputs = inputsOf(schema, SEQUENCES * spec.context)
  const run = await compileBytes(trainingGraph(spec, SEQUENCES), inputs, outputs)
  return async (batch, parameters) => {
    const values = await run({ ...batch, ...tensorsOf(schema, parameters) })
    const gradient = new Float32Array(schema.size)
    for (const { name, offset } of schema.entries) gradient.set(values[gradientName(name)]!, offset)
    return { loss: values['loss']![0]!, gradient }
  }
}

function referenceBatch({ context, vocabulary }: GptSpec): Values {
  const length = SEQUENCES * context
  return {
    tokens: Int32Array.from({ length }, (_, i) => (i * i + 2) % vocabulary),
    targets: Int32Array.from({ length }, (_, i) => (5 * i * i + 1) % vocabulary),
  }
}

describe('gptSchema', () => {
  test('has the parameter counts of the reference sizes', () => {
    expect(gptSchema({ ...SMALL, activation: 'gelu' }).size).toBe(809_856)
    expect(gptSchema({ ...BIG, activation: 'relu-squared' }).size).toBe(10_770_816)
  })

  test('decays matrices only', () => {
    for (const { shape, decay } of gptSchema({ ...TINY, activation: 'gelu' }).entries) {
      expect(decay).toBe(shape.length === 2)
    }
  })

  test('refuses heads that do not divide the embedding', () => {
    expect(() => gptSchema({ ...TINY, heads: 5, activation: 'gelu' })).toThrow(
      expect.objectContaining({ code: 'spec_invalid' }),
    )
  })
})

describe('initialParameters', () => {
  const spec = { ...SMALL, activation: 'relu-squared' } as const
  const parameters = initialParameters(spec, 'seed')
  const { entries, size } = gptSchema(spec)
  const tensor = (name: string): Float32Array => {
    const { offset, size: length } = entries.find((entry) => entry.name === name)!
    return parameters.subarray(offset, offset + length)
  }
  const deviation = (values: Float32Array): number => Math.sqrt(dot(values, values) / values.length)

  test('depend on the seed alone', () => {
    expect(parameters).toHaveLength(size)
    expect(initialParameters(spec, 'seed')).toEqual(parameters)
    expect(initialParameters(spec, 'other')).not.toEqual(parameters)
  })

  test('have the same bits on every machine', () => {
    // The first values by an independent program; the hash stands for all of them.
    expect([...parameters.subarray(0, 4)]).toEqual([
      0.09123425930738449, 0.05717607960104942, -0.0888732522726059, -0.04091903567314148,
    ])
    expect(bytesToHex(sha256(float32Bytes(parameters))).slice(0, 16)).toBe('0dd1e08c7f2684ee')
  })

  test('are distributed as in GPT-2, by width', () => {
    const matrices = 0.02 * Math.sqrt(768 / 128)
    expect(deviation(tensor('transformer.wte.weight'))).toBeCloseTo(matrices, 2)
    expect(deviation(tensor('transformer.h.2.mlp.c_fc.weight'))).toBeCloseTo(matrices, 2)
    expect(deviation(tensor('transformer.h.2.mlp.c_proj.weight'))).toBeCloseTo(
      matrices / Math.sqrt(8),
      3,
    )
    expect(deviation(tensor('transformer.h.0.attn.c_proj.weight'))).toBeCloseTo(
      matrices / Math.sqrt(8),
      3,
    )
    expect(new Set(tensor('transformer.h.1.ln_2.weight'))).toEqual(new Set([1]))
    expect(new Set(tensor('transformer.ln_f.weight'))).toEqual(new Set([1]))
    expect(new Set(tensor('transformer.h.1.ln_2.bias'))).toEqual(new Set([0]))
    expect(new Set(tensor('transformer.h.3.mlp.c_fc.bias'))).toEqual(new Set([0]))
  })
})

describe.each(ACTIVATIONS)('trainingGraph with %s', (activation) => {
  const spec: GptSpec = { ...TINY, activation }
  const schema = gptSchema(spec)

  test('has the loss and the gradients of PyTorch in float64', async () => {
    const run = await compileTraining(spec)
    const parameters = Float32Array.from(
      { length: schema.size },
      (_, i) => Math.sin(1 + 12.9898 * i) * 0.4,
    )
    const { loss, gradient } = await run(referenceBatch(spec), parameters)
    expect(loss).toBeCloseTo(reference.losses[activation], 5)
    const expected = new Map(Object.entries(reference.gradients[activation]))
    expect([...expected.keys()]).toEqual(schema.entries.map(({ name }) => name))
    for (const { name, offset, size } of schema.entries) {
      const part = gradient.subarray(offset, offset + size)
      const { norm, projection } = expected.get(name)!
      const cosines = Float64Array.from(part, (_, i) => Math.cos(i))
      expect(Math.abs(Math.sqrt(dot(part, part)) - norm), name).toBeLessThan(1e-5 * (1 + norm))
      expect(Math.abs(dot(part, cosines) - projection), name).toBeLessThan(1e-5 * (1 + norm))
    }
  })

  test('has gradients that agree with finite differences of the whole model', async () => {
    const run = await compileTraining(spec)
    const random = seededRandom('whole model', activation)
    const parameters = initialParameters(spec, 'check')
    const noise = normalValues(random, schema.size, 0.1)
    parameters.forEach((value, i) => (parameters[i] = value + noise[i]!))
    const batch = referenceBatch(spec)
    const { gradient } = await run(batch, parameters)
    for (const { name, offset, size } of schema.entries) {
      // Half along the gradient, so that the difference stands out of the rounding, half at random.
      const part = gradient.subarray(offset, offset + size)
      const length = Math.sqrt(dot(part, part))
      const direction = normalValues(random, size, 1 / Math.sqrt(size)).map(
        (value, i) => (value + part[i]! / length) / 2,
      )
      const at = async (step: number): Promise<number> => {
        const moved = parameters.slice()
        direction.forEach((value, i) => (moved[offset + i]! += step * value))
        return (await run(batch, moved)).loss
      }
      const step = 1e-2
      const numeric = ((await at(step)) - (await at(-step))) / (2 * step)
      const analytic = dot(part, direction)
      // A loss of about 2 is rounded to 2.4e-7: 1.2e-5 after the division.
      expect(Math.abs(numeric - analytic), name).toBeLessThan(5e-5 + 5e-3 * Math.abs(analytic))
    }
  })

  test('evaluationGraph has its loss, samplingGraph its logits', async () => {
    const train = await compileTraining(spec)
    const batch = referenceBatch(spec)
    const parameters = initialParameters(spec, 'logits')
    const { loss } = await train(batch, parameters)
    const tokens = SEQUENCES * spec.context
    const evaluate = await compileBytes(
      evaluationGraph(spec, SEQUENCES),
      inputsOf(schema, tokens),
      { loss: [] },
    )
    const weights = tensorsOf(schema, parameters)
    expect((await evaluate({ ...batch, ...weights }))['loss']![0]).toBeCloseTo(loss, 6)

    const sample = await compileBytes(
      samplingGraph(spec),
      [
        { name: 'tokens', type: 'int32', shape: [spec.context] },
        { name: 'position', type: 'int32', shape: [1] },
        ...inputsOf(schema, 0).slice(2),
      ],
      { logits: [spec.vocabulary] },
    )
    let total = 0
    for (let index = 0; index < tokens; index += 1) {
      const position = index % spec.context
      const start = index - position
      const { logits } = await sample({
        tokens: batch['tokens']!.slice(start, start + spec.context),
        position: Int32Array.of(position),
        ...weights,
      })
      const normaliser = Math.log([...logits!].reduce((sum, logit) => sum + Math.exp(logit), 0))
      total += normaliser - logits![batch['targets']![index]!]!
    }
    expect(total / tokens).toBeCloseTo(loss, 5)
  })
})

test('a long context costs no room in the file', () => {
  const spec = { ...TINY, context: 2048, activation: 'gelu' } as const
  expect(trainingGraph(spec, 1).length).toBeLessThan(100_000)
})
