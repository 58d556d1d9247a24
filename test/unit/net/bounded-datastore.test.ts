import { Key } from 'interface-datastore'
import { describe, expect, test } from 'vitest'
import { createBoundedDatastore } from '../../../src/net/bounded-datastore.ts'

async function keys(store: ReturnType<typeof createBoundedDatastore>): Promise<string[]> {
  const all: string[] = []
  for await (const key of store.queryKeys({})) all.push(key.toString())
  return all.sort()
}

describe('a bounded datastore', () => {
  test('drops the oldest key beside a new one, and only there', async () => {
    const store = createBoundedDatastore(2)
    for (const name of ['/peers/a', '/dht/x', '/peers/b', '/peers/a', '/peers/c']) {
      await store.put(new Key(name), new Uint8Array())
    }
    expect(await keys(store)).toEqual(['/dht/x', '/peers/b', '/peers/c'])
  })

  test('keeps what is pinned', async () => {
    const store = createBoundedDatastore(2, (key) => key === '/peers/self')
    for (const name of ['/peers/self', '/peers/a', '/peers/b', '/peers/c']) {
      await store.put(new Key(name), new Uint8Array())
    }
    expect(await keys(store)).toEqual(['/peers/b', '/peers/c', '/peers/self'])
  })

  test('has room again after a delete', async () => {
    const store = createBoundedDatastore(2)
    await store.put(new Key('/peers/a'), new Uint8Array())
    await store.put(new Key('/peers/b'), new Uint8Array())
    await store.delete(new Key('/peers/a'))
    await store.put(new Key('/peers/c'), new Uint8Array())
    expect(await keys(store)).toEqual(['/peers/b', '/peers/c'])
  })

  test('holds its bound under a flood', async () => {
    const store = createBoundedDatastore(100)
    for (let index = 0; index < 5000; index++) {
      await store.put(new Key(`/dht/provider/${index}`), new Uint8Array())
    }
    expect(await keys(store)).toHaveLength(100)
    expect(await store.has(new Key('/dht/provider/4999'))).toBe(true)
  })
})
