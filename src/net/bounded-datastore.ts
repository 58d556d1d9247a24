/** The memory of libp2p's services (peers, provider records), with an upper bound that they do not have themselves. */
import { MemoryDatastore } from 'datastore-core/memory'
import { Key } from 'interface-datastore'
import type { Datastore } from 'interface-datastore'

/**
 * At most `maxEntries` keys under each first part of a key (`/peers`, `/dht`): beyond that the oldest gives way. Anyone
 * may store records at a DHT server. `isPinned`: keys that never give way, few and known.
 */
export function createBoundedDatastore(
  maxEntries: number,
  isPinned: (key: string) => boolean = () => false,
): Datastore {
  const store = new MemoryDatastore()
  const namespaces = new Map<string, Set<string>>()
  const put = store.put.bind(store)
  const remove = store.delete.bind(store)

  store.put = async (key, value, options) => {
    const name = key.toString()
    const keys = keysBeside(name)
    if (!isPinned(name)) keys.add(name)
    if (keys.size > maxEntries) {
      const [oldest = name] = keys
      keys.delete(oldest)
      await remove(new Key(oldest, false))
    }
    return put(key, value, options)
  }
  store.delete = async (key, options) => {
    keysBeside(key.toString()).delete(key.toString())
    await remove(key, options)
  }
  return store

  function keysBeside(name: string): Set<string> {
    const namespace = name.split('/', 2)[1] ?? ''
    const keys = namespaces.get(namespace) ?? new Set()
    namespaces.set(namespace, keys)
    return keys
  }
}
