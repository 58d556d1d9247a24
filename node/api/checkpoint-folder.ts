/** Writes a checkpoint as a Hugging Face style folder: whole or not at all. */
import { randomUUID } from 'node:crypto'
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join } from 'node:path'
import { abortReason } from '../../src/clock.ts'
import { ShoalError, messageOf } from '../../src/errors.ts'
import type { CheckpointFile } from '../../src/node.ts'

/**
 * Writes `files` under a temporary name beside `folder` and renames it. An earlier export is replaced.
 * Throws `folder_invalid` when `folder` is relative, a file, or holds anything but an earlier export, and
 * `storage_failed` when writing fails; then nothing is left behind.
 */
export async function writeCheckpointFolder(
  folder: string,
  files: readonly CheckpointFile[],
  signal?: AbortSignal,
): Promise<{ name: string; bytes: number }[]> {
  if (!isAbsolute(folder)) {
    throw new ShoalError('folder_invalid', `${folder} is a relative path: give an absolute one`)
  }
  const found = await entriesOf(folder)
  checkReplaceable(folder, found, files)
  const suffix = randomUUID().slice(0, 8)
  const fresh = join(dirname(folder), `.${basename(folder)}.${suffix}.new`)
  const old = join(dirname(folder), `.${basename(folder)}.${suffix}.old`)
  try {
    await mkdir(fresh, { recursive: true })
    const written: { name: string; bytes: number }[] = []
    for (const file of files) {
      written.push({
        name: file.name,
        bytes: await writeFile(join(fresh, file.name), file, signal),
      })
    }
    await replaceFolder(folder, fresh, found === undefined ? undefined : old)
    return written
  } catch (cause) {
    if (cause instanceof ShoalError) throw cause
    throw new ShoalError('storage_failed', `cannot write ${folder}: ${messageOf(cause)}`, { cause })
  } finally {
    await rm(fresh, { recursive: true, force: true })
    await rm(old, { recursive: true, force: true })
  }
}

/** Puts `fresh` in the place of `folder`, whose present content moves to `old` until that is done. */
async function replaceFolder(
  folder: string,
  fresh: string,
  old: string | undefined,
): Promise<void> {
  if (old !== undefined) await rename(folder, old)
  try {
    await rename(fresh, folder)
  } catch (cause) {
    if (old !== undefined) await rename(old, folder)
    throw cause
  }
}

/** Names in the folder, or undefined when there is none. */
async function entriesOf(folder: string): Promise<string[] | undefined> {
  try {
    return await readdir(folder)
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
    if (code === 'ENOENT') return undefined
    const why =
      code === 'ENOTDIR' ? 'is a file: name a folder' : `cannot be read: ${messageOf(cause)}`
    throw new ShoalError('folder_invalid', `${folder} ${why}`, { cause })
  }
}

function checkReplaceable(
  folder: string,
  found: readonly string[] | undefined,
  files: readonly CheckpointFile[],
): void {
  if (found === undefined || found.length === 0) return
  const names = new Set(files.map((file) => file.name))
  const isExport = found.includes('model.safetensors') && found.every((name) => names.has(name))
  if (!isExport) {
    throw new ShoalError(
      'folder_invalid',
      `${folder} is not empty and no earlier export: name a new or empty folder`,
    )
  }
}

async function writeFile(
  path: string,
  file: CheckpointFile,
  signal: AbortSignal | undefined,
): Promise<number> {
  const handle = await open(path, 'wx')
  try {
    let bytes = 0
    for await (const piece of file.content) {
      if (signal?.aborted) throw abortReason(signal)
      await handle.writeFile(piece)
      bytes += piece.length
    }
    await handle.sync()
    return bytes
  } finally {
    await handle.close()
  }
}
