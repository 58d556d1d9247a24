import { describe, expect, test } from 'vitest'
import { gptSchema } from '../../../src/model/gpt.ts'
import { initialParameters } from '../../../src/model/initial-parameters.ts'
import { exportModel, importModel } from '../../../src/run/exported-model.ts'
import {
  freshModel,
  MANIFEST_VERSION,
  runSpecSchema,
  type Manifest,
  type ModelSpec,
} from '../../../src/run/manifest.ts'
import { readSafetensors, readTensors } from '../../../src/tensor/safetensors.ts'

const spec = runSpecSchema.parse({
  data: 'x',
  model: { layers: 1, heads: 2, embedding: 8, context: 4 },
})
const vocabulary = ['\n', ' ', '0', '1', 'a', 'é', '鯨', '𝄞']
const data = {
  tokenizer: { kind: 'char', vocabulary },
  text: null,
  validationFraction: 0.05,
} satisfies Manifest['data']
const manifest = {
  version: MANIFEST_VERSION,
  name: 'whales',
  public: false,
  model: freshModel(spec, vocabulary.length),
  schemaHash: 'a'.repeat(64),
  initial: { bytes: 0, chunks: [] },
  data,
  batchSequences: 1,
  innerSteps: 1,
  outerSteps: 1,
  inner: spec.inner,
  averaging: spec.averaging,
  limits: spec.limits,
  admins: [],
  seed: 'seed',
} satisfies Manifest
const from = { run: 'run-id', checkpoint: 'checkpoint-id', outerStep: 7 }

async function folder(of: Manifest & { model: ModelSpec }): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>()
  for (const { name, bytes, content } of exportModel(
    of,
    initialParameters(of.model, 'seed'),
    from,
  )) {
    const pieces: number[] = []
    for await (const piece of content) pieces.push(...piece)
    expect(pieces.length).toBe(bytes)
    files.set(name, Uint8Array.from(pieces))
  }
  return files
}

const text = (bytes: Uint8Array | undefined): string => new TextDecoder().decode(bytes)

describe('exported folder', () => {
  test('gives model, tokenizer and parameters back', async () => {
    const files = await folder(manifest)
    expect([...files.keys()].sort()).toEqual([
      'README.md',
      'config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    const { model, tokenizer } = importModel(
      text(files.get('config.json')),
      text(files.get('tokenizer.json')),
    )
    expect(model).toEqual(manifest.model)
    expect(tokenizer).toEqual(manifest.data.tokenizer)
    const parameters = await readSafetensors(
      [files.get('model.safetensors') ?? new Uint8Array()],
      gptSchema(model),
    )
    expect(parameters).toEqual(initialParameters(manifest.model, 'seed'))
  })

  test('says that it is a GPT-2, with all in which it differs from the defaults of that', async () => {
    const config = async (activation: ModelSpec['activation']): Promise<unknown> => {
      const files = await folder({ ...manifest, model: { ...manifest.model, activation } })
      return JSON.parse(text(files.get('config.json')))
    }
    expect(await config('relu-squared')).toMatchObject({
      model_type: 'gpt2',
      architectures: ['GPT2LMHeadModel'],
      activation_function: 'relu2',
      vocab_size: vocabulary.length,
      resid_pdrop: 0,
      eos_token_id: null,
      tie_word_embeddings: true,
    })
    expect(await config('gelu')).toMatchObject({ activation_function: 'gelu' })
  })

  test('of the first GPT-2 itself is refused: its gelu is another', async () => {
    const files = await folder(manifest)
    const config = text(files.get('config.json')).replace('relu2', 'gelu_new')
    expect(() => importModel(config, text(files.get('tokenizer.json')))).toThrow(/activation/)
  })

  test('of a model that only its trainers know has its tensors and no tokenizer', async () => {
    const external: Manifest = {
      ...manifest,
      model: { kind: 'external', tensors: [{ name: 'w', shape: [2, 2] }] },
      data: null,
    }
    const files = new Map<string, Uint8Array>()
    for (const { name, content } of exportModel(external, Float32Array.of(1, 2, 3, 4), from)) {
      const pieces: number[] = []
      for await (const piece of content) pieces.push(...piece)
      files.set(name, Uint8Array.from(pieces))
    }
    expect([...files.keys()].sort()).toEqual(['README.md', 'config.json', 'model.safetensors'])
    const { schema, parameters } = await readTensors([
      files.get('model.safetensors') ?? new Uint8Array(),
    ])
    expect(schema.entries).toMatchObject([{ name: 'w', shape: [2, 2] }])
    expect([...parameters]).toEqual([1, 2, 3, 4])
    expect(() => importModel(text(files.get('config.json')), undefined)).toThrow('config.json')
  })

  test('byte level needs no tokenizer file', async () => {
    const bytes = {
      ...manifest,
      model: { ...manifest.model, vocabulary: 256 },
      data: { ...manifest.data, tokenizer: { kind: 'byte' } as const },
    }
    const files = await folder(bytes)
    expect(files.has('tokenizer.json')).toBe(false)
    expect(importModel(text(files.get('config.json')), undefined).tokenizer).toEqual({
      kind: 'byte',
    })
  })

  test.each([
    ['no JSON', '{', '{}'],
    ['another model', '{"model_type":"gpt2"}', '{}'],
  ])('%s is a folder_invalid fault that names the file', (_name, config, tokenizer) => {
    expect(() => importModel(config, tokenizer)).toThrow(
      expect.objectContaining({ code: 'folder_invalid' }),
    )
    expect(() => importModel(config, tokenizer)).toThrow(/config\.json/)
  })

  test('a vocabulary of another size is refused', async () => {
    const files = await folder(manifest)
    const short = JSON.stringify({ model: { type: 'WordLevel', vocab: { a: 0 } } })
    expect(() => importModel(text(files.get('config.json')), short)).toThrow(
      /tokenizer\.json has 1 tokens/,
    )
  })
})
