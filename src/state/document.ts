/**
 * The Yjs document of one author: a flat map, one writer, rebuilt from its chain (a snapshot and the updates after it).
 *
 * - A snapshot is made of a fresh Y.Doc, so that what was overwritten leaves no trace and the state stays bounded.
 * - Readers rebuild the document from the chain. Equal chains thus mean equal values: no document lives long
 *   enough to diverge, to leak, or to keep structs that wait for others.
 * - Updates are v1 encoded. In v2 the columns are run-length encoded, and 25 bytes decode to 10 million structs
 *   (1.3 GB); in v1 every struct takes bytes of its own. Our updates are as small in either.
 */
import { sha256 } from '@noble/hashes/sha2.js'
import { utf8ToBytes } from '@noble/hashes/utils.js'
import * as Y from 'yjs'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'

const ROOT = 'values'

export type Values = ReadonlyMap<string, unknown>

/** 32 bits that belong to one life of one author. */
export function clientIdOf(author: string, epoch: number): number {
  const digest = sha256(utf8ToBytes(`${author}/${epoch}`))
  return new DataView(digest.buffer, digest.byteOffset).getUint32(0)
}

/** The whole of `values` as one update for an empty document. */
export function snapshotOf(clientId: number, values: Values): Uint8Array {
  return capture(new Y.Doc(), clientId, (root) => {
    for (const [key, value] of values) root.set(key, value)
  })
}

/** One transaction that turns the document of `updates` into `values`; without structs when nothing differs. */
export function updateOf(
  clientId: number,
  updates: readonly Uint8Array[],
  values: Values,
): Uint8Array {
  return capture(replay(clientId, updates), clientId, (root) => {
    for (const key of root.keys()) if (!values.has(key)) root.delete(key)
    for (const [key, value] of values) {
      if (!root.has(key) || !equalValues(root.get(key), value)) root.set(key, value)
    }
  })
}

/** The values after all `updates`. Throws `message_invalid` when one is not what an honest writer makes. */
export function valuesOf(clientId: number, updates: readonly Uint8Array[]): Values {
  const document = replay(clientId, updates)
  // Not `toJSON`: it would set the prototype for a key `__proto__`.
  const values = new Map(document.getMap(ROOT).entries())
  document.destroy()
  return values
}

function capture(
  document: Y.Doc,
  clientId: number,
  change: (root: Y.Map<unknown>) => void,
): Uint8Array {
  document.clientID = clientId
  let update: Uint8Array = EMPTY_UPDATE
  document.on('update', (bytes: Uint8Array) => (update = bytes))
  document.transact(() => change(document.getMap(ROOT)))
  document.destroy()
  return update
}

/** No clients with structs, no clients with deletions. */
const EMPTY_UPDATE = Uint8Array.of(0, 0)

function replay(clientId: number, updates: readonly Uint8Array[]): Y.Doc {
  const document = new Y.Doc()
  try {
    for (const update of updates) {
      checkUpdate(update, clientId, Y.getState(document.store, clientId))
      Y.applyUpdate(document, update)
      if (document.store.pendingStructs !== null || document.store.pendingDs !== null) {
        throw new Error('structs wait for others')
      }
    }
    const { size } = document.getMap(ROOT)
    if (size > LIMITS.boardEntries) throw new Error(`${size} entries`)
    return document
  } catch (cause) {
    document.destroy()
    throw new ShoalError('message_invalid', 'a document update breaks the rules of its author', {
      cause,
    })
  }
}

/**
 * Only what `snapshotOf` and `updateOf` emit passes: map entries with one plain value each, by this client, numbered
 * without gap from `clock`, linked to nothing but entries of this client; deletions of this client's entries.
 */
function checkUpdate(update: Uint8Array, clientId: number, clock: number): void {
  const { structs, ds } = Y.decodeUpdate(update)
  if (structs.length > LIMITS.updateStructs) throw new Error(`${structs.length} structs`)
  let next = clock
  for (const struct of structs) {
    if (!(struct instanceof Y.Item)) throw new Error('not an item')
    if (struct.id.client !== clientId || struct.id.clock !== next) throw new Error('foreign struct')
    if (!(struct.content instanceof Y.ContentAny) || struct.length !== 1) {
      throw new Error('not a plain value')
    }
    for (const link of [struct.origin, struct.rightOrigin]) {
      if (link !== null && (link.client !== clientId || link.clock >= next)) {
        throw new Error('foreign link')
      }
    }
    const parent: unknown = struct.parent
    const isEntry = parent === ROOT && struct.parentSub !== null
    const followsEntry = parent === null && struct.origin !== null
    if (!isEntry && !followsEntry) throw new Error('not a map entry')
    next++
  }
  for (const [client, deletions] of ds.clients) {
    if (client !== clientId) throw new Error('foreign deletion')
    for (const { clock: start, len } of deletions) {
      if (start + len > next) throw new Error('deletion of the unknown')
    }
  }
}

/** Values are JSON: scalars and short arrays of them. */
function equalValues(a: unknown, b: unknown): boolean {
  return Object.is(a, b) || JSON.stringify(a) === JSON.stringify(b)
}
