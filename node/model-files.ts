/** The files that a run starts from: the folder of an exported model, or a bare safetensors file. */
import { createReadStream } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { ShoalError, messageOf } from '../src/errors.ts'
import { LIMITS } from '../src/limits.ts'
import type { ModelFiles } from '../src/run/starting-point.ts'
import { parseCid } from '../src/store/content.ts'

const TENSORS = 'model.safetensors'

/** Whether what a run starts from is named by its content instead of a path. */
export function isCid(text: string): boolean {
  try {
    parseCid(text)
    return true
  } catch {
    return false
  }
}

/**
 * The files at `path`; tensors are read when they are asked for, once. Throws `folder_invalid` naming what is missing.
 */
export async function readModelFiles(path: string, signal?: AbortSignal): Promise<ModelFiles> {
  const found = await stat(path).catch((cause: unknown) => {
    throw new ShoalError('folder_invalid', `${path} cannot be read: ${messageOf(cause)}`, { cause })
  })
  const folder = found.isDirectory() ? path : dirname(path)
  const file = found.isDirectory() ? TENSORS : basename(path)
  return {
    config: found.isDirectory() ? await readSmallFile(folder, 'config.json') : undefined,
    tokenizer: found.isDirectory() ? await readSmallFile(folder, 'tokenizer.json') : undefined,
    tensors: readTensorsFile(join(folder, file), signal),
  }
}

async function* readTensorsFile(path: string, signal?: AbortSignal): AsyncIterable<Uint8Array> {
  try {
    await checkFile(path)
    const options = { highWaterMark: LIMITS.blobBytes, ...(signal !== undefined && { signal }) }
    const pieces: AsyncIterable<Uint8Array> = createReadStream(path, options)
    yield* pieces
  } catch (cause) {
    signal?.throwIfAborted()
    throw new ShoalError('folder_invalid', `${path} cannot be read: ${messageOf(cause)}`, { cause })
  }
}

/** Opening a pipe would wait for whoever writes to it, and hold a thread for so long. */
async function checkFile(path: string): Promise<number> {
  const found = await stat(path)
  if (!found.isFile()) throw new Error('it is no file')
  return found.size
}

/** Undefined when it is not there. */
export async function readSmallFile(folder: string, name: string): Promise<string | undefined> {
  const path = join(folder, name)
  try {
    const size = await checkFile(path)
    if (size <= LIMITS.manifestBytes) return await readFile(path, 'utf8')
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw new ShoalError('folder_invalid', `${path} cannot be read: ${messageOf(cause)}`, { cause })
  }
  throw new ShoalError('folder_invalid', `${path} is too large to be of a Shoal checkpoint`)
}
