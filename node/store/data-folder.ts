/** All that a daemon keeps on disk, in one folder of which it is the only user. */
import { existsSync, statSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { ShoalError } from '../../src/errors.ts'
import type { Logger } from '../../src/log.ts'
import type { Identity } from '../../src/net/identity.ts'
import type { BlobStore } from '../../src/store/blob-store.ts'
import type { RecordStore } from '../../src/store/record-store.ts'
import { openFileBlobs } from './file-blobs.ts'
import { openIdentityFile, openTokenFile } from './secret-file.ts'
import { openSqliteRecords } from './sqlite-records.ts'
import { storageFault } from './storage-fault.ts'

/** An open data folder. */
export interface DataFolder {
  readonly path: string
  readonly identity: Identity
  /** Bearer token of the local API. */
  readonly token: string
  readonly records: RecordStore
  readonly blobs: BlobStore
  /** Gives the folder free for another process. */
  close(): void
}

/**
 * Opens `path`, creating what is missing: `shoal.db`, `blobs/`, `identity.key`, `api-token`, none of it readable for
 * other users. Throws `data_folder_in_use` when another daemon has it, `storage_failed` when it cannot be written,
 * `config_invalid` or `state_corrupt` when a file in it is damaged; each names the path and the remedy.
 */
export async function openDataFolder(path: string, logger: Logger): Promise<DataFolder> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw storageFault(error, path)
  }
  const database = join(path, 'shoal.db')
  // SQLite takes a file without a byte for a new database; here it is one that was lost.
  const isLost = existsSync(join(path, 'identity.key')) && sizeOf(database) === 0
  if (isLost) {
    throw new ShoalError(
      'state_corrupt',
      `${database} is damaged (it is empty); restore it from a backup, or remove it to start afresh`,
    )
  }
  // First, because its lock keeps a second daemon from the other files.
  const records = openSqliteRecords(database)
  try {
    const blobs = await openFileBlobs(join(path, 'blobs'), logger)
    const identity = await openIdentityFile(path)
    const token = await openTokenFile(path)
    return { path, identity, token, records, blobs, close: () => records.close() }
  } catch (error) {
    records.close()
    throw error
  }
}

/** Undefined of a file that is not there. */
function sizeOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.size
}
