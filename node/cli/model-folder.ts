/** Reads a model folder as `checkpoint export` writes it. */
import { createReadStream } from 'node:fs'
import { join } from 'node:path'
import { createTokenizer } from '../../src/data/tokenizer.ts'
import type { Tokenizer } from '../../src/data/tokenizer.ts'
import { ShoalError, messageOf } from '../../src/errors.ts'
import { gptSchema } from '../../src/model/gpt.ts'
import { importModel } from '../../src/run/exported-model.ts'
import type { ModelSpec } from '../../src/run/manifest.ts'
import { readSafetensors } from '../../src/tensor/safetensors.ts'
import { readSmallFile } from '../model-files.ts'

export interface ModelFolder {
  model: ModelSpec
  tokenizer: Tokenizer
  parameters: Float32Array
}

/** Throws `folder_invalid` naming the file that is missing or does not fit. */
export async function readModelFolder(folder: string): Promise<ModelFolder> {
  const config = await readSmallFile(folder, 'config.json')
  if (config === undefined) {
    throw new ShoalError(
      'folder_invalid',
      `${folder} holds no model: name a folder that \`shoal checkpoint export\` made`,
    )
  }
  const imported = importModel(config, await readSmallFile(folder, 'tokenizer.json'))
  const tokenizer = createTokenizer(imported.tokenizer)
  const { model } = imported
  const path = join(folder, 'model.safetensors')
  try {
    const parameters = await readSafetensors(createReadStream(path), gptSchema(model))
    return { model, tokenizer, parameters }
  } catch (cause) {
    const remedy = 'export the checkpoint again'
    throw new ShoalError('folder_invalid', `${path}: ${messageOf(cause)}; ${remedy}`, { cause })
  }
}
