/**
 * Records in one SQLite file, open by one process at a time.
 *
 * The exclusive lock lasts as long as the database is open and dies with the process, so it also is what makes one
 * daemon per data folder. `synchronous=FULL`: a batch that has returned survives a power cut, which the run relies on
 * when it deletes the blobs of the state before.
 */
import { chmodSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { messageOf, ShoalError } from '../../src/errors.ts'
import type { RecordOperation, RecordStore } from '../../src/store/record-store.ts'
import { storageFault } from './storage-fault.ts'

const SCHEMA_VERSION = 1

/** Primary result codes of SQLite (https://sqlite.org/rescode.html). */
const SQLITE = {
  busy: 5,
  readOnly: 8,
  ioError: 10,
  corrupt: 11,
  full: 13,
  cannotOpen: 14,
  notADatabase: 26,
}

export interface SqliteRecordStore extends RecordStore {
  close(): void
}

/**
 * Opens or creates `path`. Throws `data_folder_in_use` when another process (or this one) has it open, `state_corrupt`
 * when it is no database, `version_unsupported` when a newer Shoal wrote it, `storage_failed` otherwise.
 */
export function openSqliteRecords(path: string): SqliteRecordStore {
  return guard(path, () => {
    const database = new DatabaseSync(path, { timeout: 0 })
    try {
      database.exec('PRAGMA locking_mode = EXCLUSIVE')
      // With the locking mode set before, this takes the lock, and the WAL needs no shared memory.
      database.exec('PRAGMA journal_mode = WAL')
      database.exec('PRAGMA synchronous = FULL')
      prepareSchema(database, path)
      chmodSync(path, 0o600)
      return recordStore(database, path)
    } catch (error) {
      database.close()
      throw error
    }
  })
}

function prepareSchema(database: DatabaseSync, path: string): void {
  const version = Number(database.prepare('PRAGMA user_version').get()?.['user_version'])
  if (version > SCHEMA_VERSION) {
    throw new ShoalError(
      'version_unsupported',
      `${path} has format ${version}, this Shoal knows ${SCHEMA_VERSION}; use the newer Shoal, or another --data-dir`,
    )
  }
  database.exec('BEGIN')
  database.exec(
    'CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID',
  )
  database.exec(`PRAGMA user_version = ${SCHEMA_VERSION}`)
  database.exec('COMMIT')
}

function recordStore(database: DatabaseSync, path: string): SqliteRecordStore {
  const select = database.prepare('SELECT value FROM records WHERE key = ?')
  const upsert = database.prepare(
    'INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value',
  )
  const remove = database.prepare('DELETE FROM records WHERE key = ?')
  const range = database.prepare(
    'SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key',
  )

  const apply = (operation: RecordOperation): void => {
    if ('put' in operation) run(upsert, operation.put, operation.value)
    else run(remove, operation.delete)
  }

  return {
    get: async (key) => guard(path, () => bytesOf(select.get(key)?.['value'])),
    put: async (key, value) => guard(path, () => run(upsert, key, value)),
    delete: async (key) => guard(path, () => run(remove, key)),
    list: async (prefix) =>
      guard(path, () =>
        // No key goes on with a character beyond the last code point.
        range
          .all(prefix, `${prefix}\u{10FFFF}`)
          .map((row) => [String(row['key']), bytesOf(row['value']) ?? new Uint8Array(0)]),
      ),
    batch: async (operations) =>
      guard(path, () => {
        database.exec('BEGIN IMMEDIATE')
        try {
          for (const operation of operations) apply(operation)
          database.exec('COMMIT')
        } catch (error) {
          if (database.isTransaction) database.exec('ROLLBACK')
          throw error
        }
      }),
    close() {
      if (database.isOpen) database.close()
    },
  }
}

function run(statement: StatementSync, ...values: (string | Uint8Array)[]): void {
  statement.run(...values)
}

function bytesOf(value: unknown): Uint8Array | undefined {
  return value instanceof Uint8Array ? value : undefined
}

/** Runs `task` and turns what SQLite throws into faults. */
function guard<T>(path: string, task: () => T): T {
  try {
    return task()
  } catch (error) {
    throw faultOf(error, path)
  }
}

function faultOf(error: unknown, path: string): ShoalError {
  const extended = error instanceof Error && 'errcode' in error ? Number(error.errcode) : NaN
  // The primary code is the lowest byte of an extended one.
  switch (extended & 0xff) {
    case SQLITE.busy:
      return new ShoalError(
        'data_folder_in_use',
        `the data folder ${dirname(path)} is in use by another daemon; stop it, or give this one a folder of its own with --data-dir`,
        { cause: error },
      )
    case SQLITE.corrupt:
    case SQLITE.notADatabase:
      return new ShoalError(
        'state_corrupt',
        `${path} is damaged (${messageOf(error)}); restore it from a backup, or move it away to start afresh`,
        { cause: error },
      )
    case SQLITE.full:
      return new ShoalError(
        'storage_failed',
        `${path}: the disk is full; free some space or choose another folder with --data-dir`,
        { cause: error },
      )
    case SQLITE.readOnly:
    case SQLITE.ioError:
    case SQLITE.cannotOpen:
      return new ShoalError(
        'storage_failed',
        `${path}: ${messageOf(error)}; check the disk and the permissions of the folder`,
        { cause: error },
      )
    default:
      return storageFault(error, path)
  }
}
