/**
 * Text to train on, from a file or a folder of this machine.
 *
 * A folder means every regular file below it in the order of its path, joined by a newline. Names that begin with a
 * dot and symbolic links are skipped, so that nothing outside the folder is read.
 */
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { abortReason, systemClock } from '../src/clock.ts'
import type { Clock } from '../src/clock.ts'
import { readText } from '../src/data/text.ts'
import { ShoalError, messageOf } from '../src/errors.ts'
import { LIMITS } from '../src/limits.ts'

const NEWLINE = 0x0a

interface TextFile {
  path: string
  bytes: number
}

export interface ReadOptions {
  clock?: Clock
  signal?: AbortSignal | undefined
}

/**
 * The text at `path`, UTF-8 without byte order marks. Throws `data_unreadable` when it cannot be read and
 * `data_unusable` when it is empty, binary, too small or too large; the message names the file and the remedy.
 */
export async function readTextFiles(path: string, options: ReadOptions = {}): Promise<Uint8Array> {
  const files = await findFiles(path)
  const total = files.reduce((sum, file) => sum + file.bytes + 1, 0)
  if (total > LIMITS.localDataBytes) {
    throw unusable(path, `holds more than ${LIMITS.localDataBytes} bytes: use a part of it`)
  }
  const joined = new Uint8Array(total)
  let length = 0
  let characters = 0
  for (const file of files.filter(({ bytes }) => bytes > 0)) {
    if (length > 0 && joined[length - 1] !== NEWLINE) joined[length++] = NEWLINE
    const text = withoutMark(await readFile(file, options.signal))
    characters += await countCharacters(file.path, text, options)
    joined.set(text, length)
    length += text.length
  }
  if (characters === 0) throw unusable(path, 'is empty: name a file or folder with text')
  if (characters < LIMITS.dataTokensMin) {
    const needed = `training needs at least ${LIMITS.dataTokensMin}`
    throw unusable(path, `has only ${characters} characters: ${needed}`)
  }
  return joined.subarray(0, length)
}

async function findFiles(path: string): Promise<TextFile[]> {
  const found = await stat(path).catch((cause: unknown) => {
    throw unreadable(path, cause)
  })
  if (found.isFile()) return [{ path, bytes: found.size }]
  if (!found.isDirectory()) throw unusable(path, 'is neither a file nor a folder')
  const files: TextFile[] = []
  await collectFiles(path, files)
  if (files.length > 0) return files
  throw unusable(path, 'holds no files (dotfiles and symbolic links are skipped)')
}

async function collectFiles(folder: string, files: TextFile[]): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((cause: unknown) => {
    throw unreadable(folder, cause)
  })
  // Compared by code unit: the same order on every machine, whatever its locale.
  const visible = entries
    .filter((entry) => !entry.name.startsWith('.'))
    .sort((a, b) => (a.name < b.name ? -1 : 1))
  for (const entry of visible) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await collectFiles(path, files)
    if (!entry.isFile()) continue
    if (files.length >= LIMITS.dataFiles) {
      throw unusable(folder, `holds more than ${LIMITS.dataFiles} files: join them into fewer`)
    }
    files.push({ path, bytes: (await stat(path)).size })
  }
}

/** As many bytes as the file had when it was found: one that grows meanwhile fills no memory. */
async function readFile(
  { path, bytes }: TextFile,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw unreadable(path, cause)
  })
  try {
    const content = new Uint8Array(bytes)
    let length = 0
    while (length < bytes) {
      if (signal?.aborted) throw abortReason(signal)
      const { bytesRead } = await handle.read(content, length, bytes - length, length)
      if (bytesRead === 0) throw unusable(path, 'became shorter while it was read: try again')
      length += bytesRead
    }
    return content
  } catch (cause) {
    throw cause instanceof ShoalError ? cause : unreadable(path, cause)
  } finally {
    await handle.close()
  }
}

/** In the middle of joined files a byte order mark would be a character. */
function withoutMark(text: Uint8Array): Uint8Array {
  return text[0] === 0xef && text[1] === 0xbb && text[2] === 0xbf ? text.subarray(3) : text
}

/** Decodes the file as training will, so that a fault can name it while it is still one of many. */
async function countCharacters(
  path: string,
  text: Uint8Array,
  { clock = systemClock, signal }: ReadOptions,
): Promise<number> {
  if (text.length === 0) return 0
  let characters = 0
  try {
    for await (const piece of readText(text, { clock, signal })) characters += piece.length
  } catch (cause) {
    if (!(cause instanceof ShoalError) || cause.code !== 'data_unusable') throw cause
    throw new ShoalError('data_unusable', `${path}: ${cause.message}`, { cause, details: { path } })
  }
  return characters
}

function unusable(path: string, why: string): ShoalError {
  return new ShoalError('data_unusable', `${path} ${why}`, { details: { path } })
}

function unreadable(path: string, cause: unknown): ShoalError {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
  const why =
    code === 'ENOENT'
      ? 'does not exist: check the path'
      : code === 'EACCES' || code === 'EPERM'
        ? 'may not be read: check its permissions'
        : `cannot be read: ${messageOf(cause)}`
  return new ShoalError('data_unreadable', `${path} ${why}`, { cause, details: { path } })
}
