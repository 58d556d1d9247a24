/**
 * Blobs as files: `<folder>/<xy>/<cid>`, where xy are the two characters before the last of the CID (the first ones
 * are the same for all). A file is written beside the others under `incoming/`, synced and renamed.
 */
import { chmod, mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import type { Logger } from '../../src/log.ts'
import type { BlobStore } from '../../src/store/blob-store.ts'
import { matchesCid, parseCid } from '../../src/store/content.ts'
import { writeFileAtomic } from './atomic-file.ts'
import { errnoOf, storageFault } from './storage-fault.ts'

const INCOMING = 'incoming'
const SHARD = /^[a-z2-7]{2}$/

/** Opens `folder`, which it creates, and removes what a crash has left of unfinished writes. */
export async function openFileBlobs(folder: string, logger: Logger): Promise<BlobStore> {
  const incoming = join(folder, INCOMING)
  await guard(folder, async () => {
    await rm(incoming, { recursive: true, force: true })
    await mkdir(incoming, { recursive: true, mode: 0o700 })
    await chmod(folder, 0o700)
  })
  let writes = 0

  const pathOf = (cid: CID): string => {
    const name = cid.toString()
    return join(folder, name.slice(-3, -1), name)
  }

  async function drop(cid: CID): Promise<void> {
    const path = pathOf(cid)
    await guard(path, () => rm(path, { force: true }))
  }

  return {
    async has(cid) {
      const path = pathOf(cid)
      return guard(path, async () => (await absentAsUndefined(stat(path))) !== undefined)
    },
    async get(cid) {
      const path = pathOf(cid)
      const bytes = await guard(path, () => readBounded(path))
      if (bytes === 'absent') return undefined
      if (bytes !== 'oversized' && (await matchesCid(bytes, cid))) return bytes
      logger.warn('blob_corrupt', { path, action: 'removed' })
      await drop(cid)
      return undefined
    },
    async put(cid, bytes) {
      if (bytes.length > LIMITS.blobBytes) {
        throw new ShoalError('limit_exceeded', `blob ${cid.toString()} has ${bytes.length} bytes`)
      }
      const path = pathOf(cid)
      await guard(path, async () => {
        await mkdir(join(path, '..'), { recursive: true, mode: 0o700 })
        await writeFileAtomic(path, join(incoming, String(writes++)), bytes, 0o600)
      })
    },
    delete: drop,
    async *list() {
      const shards = await guard(folder, () => readdir(folder))
      for (const shard of shards.filter((name) => SHARD.test(name))) {
        for (const name of await guard(folder, () => readdir(join(folder, shard)))) {
          const cid = cidOrUndefined(name)
          if (cid !== undefined) yield cid
        }
      }
    },
  }
}

async function readBounded(path: string): Promise<Uint8Array | 'absent' | 'oversized'> {
  const file = await absentAsUndefined(open(path, 'r'))
  if (file === undefined) return 'absent'
  try {
    const { size } = await file.stat()
    return size > LIMITS.blobBytes ? 'oversized' : new Uint8Array(await file.readFile())
  } finally {
    await file.close()
  }
}

async function absentAsUndefined<T>(promise: Promise<T>): Promise<T | undefined> {
  try {
    return await promise
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

function cidOrUndefined(name: string): CID | undefined {
  try {
    return parseCid(name)
  } catch {
    return undefined
  }
}

async function guard<T>(path: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    throw storageFault(error, path)
  }
}
