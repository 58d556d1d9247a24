import { utf8ToBytes } from '@noble/hashes/utils.js'
import { expect, test } from 'vitest'
import { createBlobReferences } from '../../../src/store/blob-references.ts'
import type { BlobStore } from '../../../src/store/blob-store.ts'
import { cidOf, parseCid } from '../../../src/store/content.ts'
import { createMemoryBlobStore } from '../../../src/store/memory.ts'

async function stored(blobs: BlobStore, text: string): Promise<string> {
  const bytes = utf8ToBytes(text)
  const cid = await cidOf(bytes, 'raw')
  await blobs.put(cid, bytes)
  return cid.toString()
}

test('a blob goes when the last who keeps it lets go, once', async () => {
  const blobs = createMemoryBlobStore()
  const references = createBlobReferences(blobs)
  const zeros = await stored(blobs, 'zeros')
  const releaseFirst = references.retain([zeros, zeros])
  const releaseSecond = references.retain([zeros])
  await releaseFirst()
  await releaseFirst()
  expect(await blobs.has(parseCid(zeros))).toBe(true)
  await releaseSecond()
  expect(await blobs.has(parseCid(zeros))).toBe(false)
})

test('a sweep deletes what nobody keeps and nothing else', async () => {
  const blobs = createMemoryBlobStore()
  const references = createBlobReferences(blobs)
  const kept = await stored(blobs, 'kept')
  const orphan = await stored(blobs, 'orphan')
  references.retain([kept])
  expect(await references.sweep()).toBe(1)
  expect(await blobs.has(parseCid(kept))).toBe(true)
  expect(await blobs.has(parseCid(orphan))).toBe(false)
})

test('whoever keeps a blob while it is being deleted finds it gone, never half gone', async () => {
  const store = createMemoryBlobStore()
  const gate = Promise.withResolvers<void>()
  const begun = Promise.withResolvers<void>()
  // A disk that takes its time to delete.
  const slow: BlobStore = {
    ...store,
    async delete(cid) {
      begun.resolve()
      await gate.promise
      await store.delete(cid)
    },
  }
  const references = createBlobReferences(slow)
  const { blobs } = references
  const cid = parseCid(await stored(store, 'zeros'))
  const bytes = utf8ToBytes('zeros')
  const released = references.retain([cid.toString()])()
  await begun.promise
  const release = references.retain([cid.toString()])
  const looked = blobs.has(cid)
  const put = blobs.put(cid, bytes)
  gate.resolve()
  expect(await looked).toBe(false)
  await Promise.all([released, put])
  expect(await blobs.get(cid)).toEqual(bytes)
  await release()
  expect(await blobs.has(cid)).toBe(false)
})

test('pins keep what was found and what was put until they are released', async () => {
  const store = createMemoryBlobStore()
  const references = createBlobReferences(store)
  const found = parseCid(await stored(store, 'found'))
  const release = references.retain([found.toString()])
  const pins = references.pin()
  expect(await pins.blobs.has(found)).toBe(true)
  await release()
  const put = parseCid(await stored(pins.blobs, 'put'))
  expect(await references.sweep()).toBe(0)
  expect([await store.has(found), await store.has(put)]).toEqual([true, true])
  await pins.release()
  expect([await store.has(found), await store.has(put)]).toEqual([false, false])
})
