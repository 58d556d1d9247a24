/**
 * A checkpoint as a Hugging Face style folder, and back: `config.json`, `model.safetensors`, `tokenizer.json` and
 * `tokenizer_config.json` (char level; the byte level needs none), `README.md`.
 *
 * The built-in model is GPT-2 in names, shapes and arithmetic, so that is what the folder says: `from_pretrained` of the
 * transformers library loads it. `tokenizer.json` is in the format of the tokenizers library: one token per character, by
 * position in the vocabulary.
 */
import { utf8ToBytes } from '@noble/hashes/utils.js'
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { LAYER_NORM_EPSILON } from '../model/normalization.ts'
import { writeSafetensors } from '../tensor/safetensors.ts'
import {
  modelSpecSchema,
  tokenizerSchema,
  type Manifest,
  type ModelSpec,
  type TokenizerSpec,
} from './manifest.ts'
import { modelSchema } from './model-schema.ts'

/** A file of the folder; its content is made while it is read. */
export interface ExportedFile {
  name: string
  bytes: number
  content: AsyncIterable<Uint8Array>
}

export interface ExportedFrom {
  run: string
  checkpoint: string
  outerStep: number
}

export function exportModel(
  manifest: Manifest,
  parameters: Float32Array,
  from: ExportedFrom,
): ExportedFile[] {
  const tensors = writeSafetensors(modelSchema(manifest.model), parameters, { format: 'pt' })
  const tokenizer = manifest.data?.tokenizer
  const files: ExportedFile[] = [
    textFile('config.json', json(configOf(manifest, from))),
    { name: 'model.safetensors', ...tensors },
    textFile('README.md', cardOf(manifest, from)),
  ]
  if (tokenizer?.kind === 'char') {
    files.push(
      textFile('tokenizer.json', json(tokenizerFileOf(tokenizer.vocabulary))),
      textFile('tokenizer_config.json', json(TOKENIZER_CONFIG)),
    )
  }
  return files
}

/** Names of activations in the transformers library. */
const ACTIVATIONS = { 'relu-squared': 'relu2', gelu: 'gelu' } as const
/** Else a class is guessed that expects GPT-2's own vocabulary. */
const TOKENIZER_CONFIG = {
  tokenizer_class: 'PreTrainedTokenizerFast',
  clean_up_tokenization_spaces: false,
}

const configSchema = z.object({
  model_type: z.literal('gpt2'),
  n_layer: z.number(),
  n_head: z.number(),
  n_embd: z.number(),
  n_positions: z.number(),
  vocab_size: z.number(),
  activation_function: z.string(),
  tokenizer_kind: z.enum(['byte', 'char']),
})

const tokenizerFileSchema = z.object({
  model: z.object({
    type: z.literal('WordLevel'),
    vocab: z.record(z.string(), z.number().int().min(0)),
  }),
})

/**
 * Model and tokenizer of an exported folder from the texts of its `config.json` and (char level) `tokenizer.json`.
 * Throws `folder_invalid` naming the file.
 */
export function importModel(
  config: string,
  tokenizerFile: string | undefined,
): { model: ModelSpec; tokenizer: TokenizerSpec } {
  const parsed = parse('config.json', configSchema, config)
  const model = modelSpecSchema.safeParse({
    kind: 'gpt',
    layers: parsed.n_layer,
    heads: parsed.n_head,
    embedding: parsed.n_embd,
    context: parsed.n_positions,
    vocabulary: parsed.vocab_size,
    activation: activationNamed(parsed.activation_function),
  })
  if (!model.success) throw invalid('config.json', model.error)
  if (parsed.tokenizer_kind === 'byte') return { model: model.data, tokenizer: { kind: 'byte' } }
  if (tokenizerFile === undefined) {
    throw new ShoalError('folder_invalid', 'tokenizer.json is missing: export the checkpoint again')
  }
  const { vocab } = parse('tokenizer.json', tokenizerFileSchema, tokenizerFile).model
  const vocabulary = Object.entries(vocab)
    .sort(([, a], [, b]) => a - b)
    .map(([character]) => character)
  const tokenizer = tokenizerSchema.safeParse({ kind: 'char', vocabulary })
  if (!tokenizer.success) throw invalid('tokenizer.json', tokenizer.error)
  if (vocabulary.length !== model.data.vocabulary) {
    throw new ShoalError(
      'folder_invalid',
      `tokenizer.json has ${vocabulary.length} tokens, config.json says ${model.data.vocabulary}: export the checkpoint again`,
    )
  }
  return { model: model.data, tokenizer: tokenizer.data }
}

/** What the built-in model does not have, such as the approximate gelu of the first GPT-2, keeps its name. */
function activationNamed(name: string): string {
  return Object.entries(ACTIVATIONS).find(([, known]) => known === name)?.[0] ?? name
}

function configOf({ model, data, name }: Manifest, from: ExportedFrom): Record<string, unknown> {
  if (model.kind === 'external') return { model_type: 'external', shoal: { name, ...from } }
  return {
    architectures: ['GPT2LMHeadModel'],
    model_type: 'gpt2',
    n_layer: model.layers,
    n_head: model.heads,
    n_embd: model.embedding,
    n_positions: model.context,
    vocab_size: model.vocabulary,
    activation_function: ACTIVATIONS[model.activation],
    layer_norm_epsilon: LAYER_NORM_EPSILON,
    attn_pdrop: 0,
    embd_pdrop: 0,
    resid_pdrop: 0,
    // GPT-2's own is a token that this vocabulary does not have.
    bos_token_id: null,
    eos_token_id: null,
    tie_word_embeddings: true,
    torch_dtype: 'float32',
    tokenizer_kind: data?.tokenizer.kind,
    shoal: { name, ...from },
  }
}

function tokenizerFileOf(vocabulary: readonly string[]): Record<string, unknown> {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: {
      type: 'Split',
      pattern: { Regex: '[\\s\\S]' },
      behavior: 'Isolated',
      invert: false,
    },
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: {
      type: 'WordLevel',
      vocab: Object.fromEntries(vocabulary.map((character, token) => [character, token])),
      unk_token: vocabulary[0],
    },
  }
}

function cardOf({ name, model }: Manifest, { run, checkpoint, outerStep }: ExportedFrom): string {
  const isExternal = model.kind === 'external'
  const what = isExternal
    ? `A model of ${model.tensors.length} tensors that its trainers know`
    : `A character or byte level GPT (${model.layers} layers, ${model.heads} heads, width ${model.embedding}, context ${model.context})`
  const use = isExternal
    ? '`config.json` of the model itself is not part of this folder: it stays with its trainers.'
    : 'Continue a text with it: `shoal sample . --prompt "…"`. It is a GPT-2: `AutoModelForCausalLM.from_pretrained(folder)`.'
  return `---
library_name: shoal
---
# ${name}

${what},
trained by a Shoal swarm.

- run: \`${run}\`
- checkpoint: \`${checkpoint}\` after ${outerStep} outer steps

${use}
`
}

function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

function textFile(name: string, text: string): ExportedFile {
  const bytes = utf8ToBytes(text)
  return {
    name,
    bytes: bytes.length,
    content: (async function* () {
      yield bytes
    })(),
  }
}

function parse<T>(file: string, schema: z.ZodType<T>, text: string): T {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new ShoalError('folder_invalid', `${file} is no JSON: export the checkpoint again`, {
      cause,
    })
  }
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  throw invalid(file, parsed.error)
}

function invalid(file: string, error: z.ZodError): ShoalError {
  const issue = error.issues[0]
  const place = issue === undefined || issue.path.length === 0 ? '' : `${issue.path.join('.')}: `
  return new ShoalError(
    'folder_invalid',
    `${file} is not of a Shoal checkpoint (${place}${issue?.message}): name a folder that \`shoal checkpoint export\` made`,
  )
}
