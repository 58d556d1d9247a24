/** Stores that live as long as the process: for tests, simulations and browsers without storage. */
import { CID } from 'multiformats/cid'
import type { BlobStore } from './blob-store.ts'
import type { RecordStore } from './record-store.ts'

/** Blobs are copied on the way in and out, so that no caller can change what a CID names. */
export function createMemoryBlobStore(): BlobStore {
  const blobs = new Map<string, Uint8Array>()
  return {
    has: async (cid) => blobs.has(cid.toString()),
    get: async (cid) => blobs.get(cid.toString())?.slice(),
    async put(cid, bytes) {
      blobs.set(cid.toString(), bytes.slice())
    },
    async delete(cid) {
      blobs.delete(cid.toString())
    },
    async *list() {
      for (const name of blobs.keys()) yield CID.parse(name)
    },
  }
}

/** Each method runs without yielding, which is what makes a batch whole. */
export function createMemoryRecordStore(): RecordStore {
  const records = new Map<string, Uint8Array>()
  return {
    get: async (key) => records.get(key)?.slice(),
    async put(key, value) {
      records.set(key, value.slice())
    },
    async delete(key) {
      records.delete(key)
    },
    async list(prefix) {
      return [...records]
        .filter(([key]) => key.startsWith(prefix))
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([key, value]) => [key, value.slice()])
    },
    async batch(operations) {
      for (const operation of operations) {
        if ('put' in operation) records.set(operation.put, operation.value.slice())
        else records.delete(operation.delete)
      }
    },
  }
}
