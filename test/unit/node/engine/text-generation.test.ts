import { beforeAll, describe, expect, test } from 'vitest'
import { createEngine } from '../../../../node/engine/engine.ts'
import {
  generateText,
  type TextGenerationOptions,
} from '../../../../node/engine/text-generation.ts'
import { ShoalError } from '../../../../src/errors.ts'
import { tinyParameters, tinySpec, tinyTokenizer } from './tiny-trainer.ts'

const base: TextGenerationOptions = {
  spec: tinySpec.model,
  parameters: tinyParameters,
  prompt: [1, 2, 3],
  count: 40,
  temperature: 1,
  topK: 0,
  seed: 'text',
}
let trained = tinyParameters

beforeAll(async () => {
  const engine = await createEngine({ backend: 'native', threads: 1 })
  const trainer = await engine.open(tinySpec, tinyParameters)
  for (let outerStep = 0; outerStep < 20; outerStep += 1) await trainer.innerSteps(outerStep)
  trained = await trainer.readParameters()
  await engine.close()
})

describe('generateText', () => {
  test('continues a text it has learnt, beyond the context', async () => {
    const prompt = tinyTokenizer.encode('the quick ')
    const tokens = await generateText({ ...base, parameters: trained, prompt, temperature: 0 })
    const text = tinyTokenizer.decode(tokens)
    expect(text.slice(0, 33)).toBe('brown fox jumps over the lazy dog')
  })

  test('is the same for a seed, and another for another', async () => {
    const seen: number[] = []
    const first = await generateText({ ...base, onToken: (token) => seen.push(token) })
    expect(first).toHaveLength(40)
    expect(seen).toEqual(first)
    expect(await generateText(base)).toEqual(first)
    expect(await generateText({ ...base, seed: 'other' })).not.toEqual(first)
  })

  test('by WebAssembly gives the likeliest tokens of the native build', async () => {
    const greedy = { ...base, parameters: trained, temperature: 0 }
    expect(await generateText({ ...greedy, backend: 'wasm' })).toEqual(
      await generateText({ ...greedy, backend: 'native' }),
    )
  })

  test('stops when told', async () => {
    const controller = new AbortController()
    const reason = new ShoalError('aborted', 'enough')
    const seen: number[] = []
    const onToken = (token: number): void => {
      if (seen.push(token) === 3) controller.abort(reason)
    }
    const generation = generateText({ ...base, signal: controller.signal, onToken })
    await expect(generation).rejects.toBe(reason)
    expect(seen).toHaveLength(3)
  })

  test.each([
    ['an empty prompt', { prompt: [] }, 'usage'],
    ['a token the model does not know', { prompt: [1, 4000] }, 'usage'],
    ['no tokens to generate', { count: 0 }, 'usage'],
    ['too many', { count: 1e9 }, 'usage'],
    ['a negative temperature', { temperature: -1 }, 'usage'],
    ['half a candidate', { topK: 0.5 }, 'usage'],
    ['parameters of another model', { parameters: new Float32Array(3) }, 'schema_mismatch'],
    [
      'parameters that diverged',
      { parameters: tinyParameters.map(() => Number.NaN) },
      'engine_failed',
    ],
  ])('refuses %s', async (_name, change, code) => {
    await expect(generateText({ ...base, ...change })).rejects.toMatchObject({ code })
  })
})
