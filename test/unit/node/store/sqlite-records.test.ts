import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterAll, describe, expect, test } from 'vitest'
import { openSqliteRecords, type SqliteRecordStore } from '../../../../node/store/sqlite-records.ts'
import { testRecordStore } from '../../store/store-contract.ts'
import { temporaryFolders } from './temporary-folder.ts'

const temporaryFolder = temporaryFolders()
const opened: { close(): void }[] = []
afterAll(() => {
  for (const store of opened) store.close()
})

function open(path: string): SqliteRecordStore {
  const store = openSqliteRecords(path)
  opened.push(store)
  return store
}

/** A process that opens `path`, writes batches of ten records for as long as it lives, and tells when it has begun. */
async function startWriter(path: string): Promise<ChildProcess> {
  const script = `
    import { openSqliteRecords } from ${JSON.stringify(join(import.meta.dirname, '../../../../node/store/sqlite-records.ts'))}
    const store = openSqliteRecords(${JSON.stringify(path)})
    for (let round = 1; ; round++) {
      const value = new Uint8Array(2000).fill(round % 256)
      await store.batch(Array.from({ length: 10 }, (_, index) => ({ put: 'key/' + index, value })))
      if (round === 3) process.stdout.write('ready')
      if (round % 10 === 0) await new Promise((resolve) => setImmediate(resolve))
    }`
  const child = spawn(process.execPath, ['--input-type=module-typescript', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(child.stdout, 'data')
  return child
}

describe('SQLite records', () => {
  testRecordStore(() => open(join(temporaryFolder(), 'shoal.db')))

  test('are there again after closing, and only their owner can read them', async () => {
    const path = join(temporaryFolder(), 'shoal.db')
    const first = open(path)
    await first.put('a', Uint8Array.of(1))
    first.close()
    expect(statSync(path).mode & 0o777).toBe(0o600)
    expect(await open(path).get('a')).toEqual(Uint8Array.of(1))
  })

  test('a failed batch leaves nothing behind', async () => {
    const store = open(join(temporaryFolder(), 'shoal.db'))
    await store.put('kept', Uint8Array.of(1))
    const notBytes: Uint8Array = Object.create(null)
    await expect(
      store.batch([
        { delete: 'kept' },
        { put: 'new', value: Uint8Array.of(2) },
        { put: 'bad', value: notBytes },
      ]),
    ).rejects.toMatchObject({ code: 'storage_failed' })
    expect((await store.list('')).map(([key]) => key)).toEqual(['kept'])
    await store.put('after', Uint8Array.of(3))
    expect((await store.list('')).length).toBe(2)
  })

  test('a second opener is told whose folder it is, in this process and in another', async () => {
    const path = join(temporaryFolder(), 'shoal.db')
    const writer = await startWriter(path)
    try {
      expect(() => openSqliteRecords(path)).toThrow(
        expect.objectContaining({
          code: 'data_folder_in_use',
          message: expect.stringMatching(/shoal-store-.* is in use by another daemon; stop it/),
        }),
      )
    } finally {
      writer.kill('SIGKILL')
      await once(writer, 'exit')
    }
    const store = open(path)
    expect(() => openSqliteRecords(path)).toThrow(
      expect.objectContaining({ code: 'data_folder_in_use' }),
    )
    store.close()
    open(path)
  })

  test('kill -9 in the midst of batches leaves whole ones', async () => {
    const path = join(temporaryFolder(), 'shoal.db')
    for (let round = 0; round < 3; round++) {
      const writer = await startWriter(path)
      writer.kill('SIGKILL')
      await once(writer, 'exit')
      const store = open(path)
      const records = await store.list('key/')
      expect(records.length).toBe(10)
      expect(new Set(records.map(([, value]) => value.join())).size).toBe(1)
      store.close()
    }
  })

  test('refuses damaged files and newer formats, naming them', () => {
    const folder = temporaryFolder()
    const garbage = join(folder, 'garbage.db')
    writeFileSync(garbage, 'this is no database. '.repeat(100))
    expect(() => openSqliteRecords(garbage)).toThrow(
      expect.objectContaining({
        code: 'state_corrupt',
        message: expect.stringContaining('garbage.db is damaged'),
      }),
    )
    const newer = join(folder, 'newer.db')
    const database = new DatabaseSync(newer)
    database.exec('PRAGMA user_version = 99')
    database.close()
    expect(() => openSqliteRecords(newer)).toThrow(
      expect.objectContaining({ code: 'version_unsupported' }),
    )
    expect(() => openSqliteRecords(join(folder, 'missing', 'shoal.db'))).toThrow(
      expect.objectContaining({ code: 'storage_failed' }),
    )
  })

  test('damage found later is reported too', async () => {
    const path = join(temporaryFolder(), 'shoal.db')
    const store = open(path)
    for (let index = 0; index < 500; index++) {
      await store.put(`key/${index}`, new Uint8Array(2000).fill(index % 256))
    }
    store.close()
    truncateSync(path, statSync(path).size - 300_000)
    const read = async (): Promise<unknown> => open(path).list('')
    await expect(read()).rejects.toMatchObject({ code: 'state_corrupt' })
  })
})
