import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { openFileBlobs } from '../../../../node/store/file-blobs.ts'
import { storageFault } from '../../../../node/store/storage-fault.ts'
import { LIMITS } from '../../../../src/limits.ts'
import { silentLogger, type Logger } from '../../../../src/log.ts'
import { cidOf } from '../../../../src/store/content.ts'
import { collect, testBlobStore } from '../../store/store-contract.ts'
import { temporaryFolders } from './temporary-folder.ts'

const temporaryFolder = temporaryFolders()

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
}

function recordingLogger(): { logger: Logger; events: string[] } {
  const events: string[] = []
  return { events, logger: { ...silentLogger, warn: (event) => events.push(event) } }
}

describe('blob files', () => {
  testBlobStore(() => openFileBlobs(join(temporaryFolder(), 'blobs'), silentLogger))

  test('lie under two characters of their CID, for their owner only', async () => {
    const folder = join(temporaryFolder(), 'blobs')
    const store = await openFileBlobs(folder, silentLogger)
    const cid = await cidOf(Uint8Array.of(1), 'raw')
    await store.put(cid, Uint8Array.of(1))
    const name = cid.toString()
    const path = join(folder, name.slice(-3, -1), name)
    expect(readFileSync(path)).toEqual(Buffer.of(1))
    expect(statSync(path).mode & 0o777).toBe(0o600)
    expect(statSync(folder).mode & 0o777).toBe(0o700)
    const again = await openFileBlobs(folder, silentLogger)
    expect(await again.get(cid)).toEqual(Uint8Array.of(1))
  })

  test('a corrupt file is removed, reported and absent, whatever the damage', async () => {
    const folder = join(temporaryFolder(), 'blobs')
    const { logger, events } = recordingLogger()
    const store = await openFileBlobs(folder, logger)
    const bytes = new Uint8Array(5000).map((_, index) => index % 251)
    const cid = await cidOf(bytes, 'raw')
    const damages: ((path: string) => void)[] = [
      (path) => writeFileSync(path, bytes.with(77, 0)),
      (path) => truncateSync(path, 4999),
      (path) => truncateSync(path, 0),
      (path) => truncateSync(path, LIMITS.blobBytes + 1),
    ]
    for (const [index, damage] of damages.entries()) {
      await store.put(cid, bytes)
      const [path = ''] = filesIn(folder)
      damage(path)
      expect(await store.has(cid)).toBe(true)
      expect(await store.get(cid)).toBeUndefined()
      expect(existsSync(path)).toBe(false)
      expect(events).toEqual(Array(index + 1).fill('blob_corrupt'))
    }
    await store.put(cid, bytes)
    expect(await store.get(cid)).toEqual(bytes)
  })

  test('a process killed before the rename leaves no blob, and the next start cleans up', async () => {
    const folder = join(temporaryFolder(), 'blobs')
    const cid = await cidOf(new Uint8Array(LIMITS.blobBytes), 'raw')
    // The real put, stopped for good where it would rename the finished file.
    const script = `
      import fs from 'node:fs/promises'
      import { syncBuiltinESMExports } from 'node:module'
      fs.rename = () => { process.kill(process.pid, 'SIGKILL'); return new Promise(() => {}) }
      syncBuiltinESMExports()
      const { openFileBlobs } = await import(${JSON.stringify(join(import.meta.dirname, '../../../../node/store/file-blobs.ts'))})
      const { cidOf } = await import(${JSON.stringify(join(import.meta.dirname, '../../../../src/store/content.ts'))})
      const { silentLogger } = await import(${JSON.stringify(join(import.meta.dirname, '../../../../src/log.ts'))})
      const store = await openFileBlobs(${JSON.stringify(folder)}, silentLogger)
      const bytes = new Uint8Array(${LIMITS.blobBytes})
      await store.put(await cidOf(bytes, 'raw'), bytes)`
    const child = spawn(process.execPath, ['--input-type=module-typescript', '--eval', script], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    const [, signal] = await once(child, 'exit')
    expect(signal).toBe('SIGKILL')
    expect(filesIn(folder).map((path) => statSync(path).size)).toEqual([LIMITS.blobBytes])

    const store = await openFileBlobs(folder, silentLogger)
    expect(await store.has(cid)).toBe(false)
    expect(await collect(store.list())).toEqual([])
    expect(filesIn(folder)).toEqual([])
  })

  test('a failed write says why and leaves neither blob nor temporary file', async () => {
    const folder = join(temporaryFolder(), 'blobs')
    const store = await openFileBlobs(folder, silentLogger)
    const bytes = Uint8Array.of(1, 2, 3)
    const cid = await cidOf(bytes, 'raw')
    const name = cid.toString()
    // A folder that is not empty stands where the file should be.
    mkdirSync(join(folder, name.slice(-3, -1), name, 'x'), { recursive: true })
    await expect(store.put(cid, bytes)).rejects.toMatchObject({
      code: 'storage_failed',
      message: expect.stringContaining(name),
    })
    expect(filesIn(folder)).toEqual([])
    const large = new Uint8Array(LIMITS.blobBytes + 1)
    await expect(store.put(await cidOf(large, 'raw'), large)).rejects.toMatchObject({
      code: 'limit_exceeded',
    })
  })

  test.skipIf(!existsSync('/dev/full'))('a full disk is named with the remedy', async () => {
    const full = await new Promise((resolve) => {
      import('node:fs').then(
        ({ writeFile }) => writeFile('/dev/full', 'x'.repeat(1 << 16), resolve),
        resolve,
      )
    })
    expect(storageFault(full, '/data/blobs')).toMatchObject({
      code: 'storage_failed',
      message: expect.stringMatching(/^\/data\/blobs: the disk is full; free some space/),
    })
  })

  test('foreign files among the blobs are left alone', async () => {
    const folder = join(temporaryFolder(), 'blobs')
    const store = await openFileBlobs(folder, silentLogger)
    mkdirSync(join(folder, 'ab'))
    writeFileSync(join(folder, 'ab', 'notes.txt'), 'mine')
    writeFileSync(join(folder, 'README'), 'mine')
    expect(await collect(store.list())).toEqual([])
    expect(existsSync(join(folder, 'ab', 'notes.txt'))).toBe(true)
  })
})
