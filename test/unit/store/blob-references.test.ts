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
