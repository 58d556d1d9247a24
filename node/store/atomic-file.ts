/** Files that are there whole or not at all, whenever the machine stops. */
import { open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'

/**
 * Writes to `temporary` (same file system), syncs it and renames it to `path`; the name is on disk when the
 * promise resolves. A failure leaves `path` as it was. Throws the errors of the file system.
 */
export async function writeFileAtomic(
  path: string,
  temporary: string,
  bytes: Uint8Array | string,
  mode: number,
): Promise<void> {
  try {
    const file = await open(temporary, 'w', mode)
    try {
      await file.writeFile(bytes)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  await syncFolder(dirname(path))
}

async function syncFolder(path: string): Promise<void> {
  // Windows cannot open folders; its renames are journalled.
  if (process.platform === 'win32') return
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
