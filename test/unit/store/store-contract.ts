/** What every RecordStore and BlobStore must do, run against each implementation. */
import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import type { BlobStore } from '../../../src/store/blob-store.ts'
import { cidOf } from '../../../src/store/content.ts'
import type { RecordOperation, RecordStore } from '../../../src/store/record-store.ts'

const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values)

export async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = []
  for await (const item of source) items.push(item)
  return items
}

export function testRecordStore(open: () => Promise<RecordStore> | RecordStore): void {
  test('keeps, replaces and deletes records', async () => {
    const store = await open()
    expect(await store.get('a')).toBeUndefined()
    await store.put('a', bytes(1))
    await store.put('a', bytes(2, 3))
    expect(await store.get('a')).toEqual(bytes(2, 3))
    await store.delete('a')
    await store.delete('a')
    expect(await store.get('a')).toBeUndefined()
    await store.put('empty', bytes())
    expect(await store.get('empty')).toEqual(bytes())
  })

  test('lists a prefix in key order, and nothing beside it', async () => {
    const store = await open()
    for (const key of ['run/b', 'run/a/2', 'run/a/10', 'runs', 'rum', 'run/%', 'run/_']) {
      await store.put(key, bytes(key.length))
    }
    const keys = (await store.list('run/')).map(([key]) => key)
    expect(keys).toEqual(['run/%', 'run/_', 'run/a/10', 'run/a/2', 'run/b'])
    expect((await store.list('')).length).toBe(7)
    expect(await store.list('nothing')).toEqual([])
  })

  test('is not changed through the bytes it took or gave', async () => {
    const store = await open()
    const value = bytes(1, 2)
    await store.put('a', value)
    value[0] = 9
    const first = await store.get('a')
    first?.fill(7)
    expect(await store.get('a')).toEqual(bytes(1, 2))
  })

  test('behaves like a sorted map under any sequence of batches', async () => {
    const key = fc.constantFrom('a', 'a/b', 'a/b/c', 'b', 'ba')
    const operation: fc.Arbitrary<RecordOperation> = fc.oneof(
      fc.record({ put: key, value: fc.uint8Array({ maxLength: 8 }) }),
      fc.record({ delete: key }),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(fc.array(operation, { maxLength: 6 })), async (batches) => {
        const store = await open()
        const model = new Map<string, Uint8Array>()
        for (const batch of batches) {
          await store.batch(batch)
          for (const step of batch) {
            if ('put' in step) model.set(step.put, step.value)
            else model.delete(step.delete)
          }
        }
        const expected = [...model].sort(([a], [b]) => (a < b ? -1 : 1))
        expect(await store.list('')).toEqual(expected)
        expect(await store.list('a/')).toEqual(expected.filter(([name]) => name.startsWith('a/')))
      }),
      { numRuns: 25 },
    )
  })
}

export function testBlobStore(open: () => Promise<BlobStore> | BlobStore): void {
  test('keeps, lists and deletes blobs', async () => {
    const store = await open()
    const one = bytes(1, 2, 3)
    const cid = await cidOf(one, 'raw')
    const other = await cidOf(bytes(4), 'dag-cbor')
    expect(await store.has(cid)).toBe(false)
    expect(await store.get(cid)).toBeUndefined()
    await store.put(cid, one)
    await store.put(cid, one)
    await store.put(other, bytes(4))
    one[0] = 9
    expect(await store.has(cid)).toBe(true)
    const read = await store.get(cid)
    expect(read).toEqual(bytes(1, 2, 3))
    read?.fill(0)
    expect(await store.get(cid)).toEqual(bytes(1, 2, 3))
    const listed = (await collect(store.list())).map(String).sort()
    expect(listed).toEqual([cid.toString(), other.toString()].sort())
    await store.delete(cid)
    await store.delete(cid)
    expect(await store.has(cid)).toBe(false)
    expect(await store.get(cid)).toBeUndefined()
    expect((await collect(store.list())).map(String)).toEqual([other.toString()])
  })

  test('may be changed while it is listed', async () => {
    const store = await open()
    for (let value = 0; value < 8; value++) {
      await store.put(await cidOf(bytes(value), 'raw'), bytes(value))
    }
    for await (const cid of store.list()) await store.delete(cid)
    expect(await collect(store.list())).toEqual([])
  })
}
