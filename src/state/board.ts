/**
 * The board: what the admins of a run tell everybody, merged from one single-writer document per admin.
 *
 * Each admin writes only its own document, so that what one wrote no other can forge, alter or erase, and a document
 * never waits for another admin's. An entry is [counter, value], or [counter] for a deletion; the highest counter
 * wins, then the higher peer id (Lamport 1978), so all nodes with the same envelopes see the same board.
 */
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Values } from './document.ts'
import type { BoardValue } from './shared-state.ts'

const keySchema = z.string().regex(/^[A-Za-z0-9][\w.:/-]{0,63}$/)
const valueSchema = z.union([
  z.string().max(LIMITS.boardTextLength),
  z.number(),
  z.boolean(),
  z.null(),
])
const counterSchema = z.number().int().min(1)
const entrySchema = z.union([z.tuple([counterSchema]), z.tuple([counterSchema, valueSchema])])

/** One admin's document. */
export interface AdminDocument {
  author: string
  values: Values
}

interface Entry {
  counter: number
  author: string
  /** Undefined when deleted. */
  value: BoardValue | undefined
}

/** The merged entries in key order. Entries that do not parse are left out. */
export function boardOf(documents: readonly AdminDocument[]): Record<string, BoardValue> {
  const entries = [...merge(documents)].sort(([a], [b]) => (a < b ? -1 : 1))
  return Object.fromEntries(
    entries.flatMap(([key, { value }]) => (value === undefined ? [] : [[key, value]])),
  )
}

/**
 * The document of `self` after it has set `key`, or deleted it where `value` is undefined. Throws `body_invalid` for
 * a key or value that no board takes, `limit_exceeded` when the document is full.
 */
export function withEntry(
  documents: readonly AdminDocument[],
  self: string,
  key: string,
  value: BoardValue | undefined,
): Values {
  if (!keySchema.safeParse(key).success) {
    throw new ShoalError(
      'body_invalid',
      `board key ${JSON.stringify(key.slice(0, 80))} is not 1 to 64 letters, digits or ._:/- that begin with a letter or digit`,
    )
  }
  if (value !== undefined && !valueSchema.safeParse(value).success) {
    throw new ShoalError(
      'body_invalid',
      `the value of board entry ${key} is not a finite number, a boolean, null or a text of at most ${LIMITS.boardTextLength} characters`,
    )
  }
  const own = new Map(documents.find(({ author }) => author === self)?.values)
  const counter = (merge(documents).get(key)?.counter ?? 0) + 1
  const others = documents.filter(({ author }) => author !== self)
  if (value !== undefined) own.set(key, [counter, value])
  // A deletion needs an entry of its own only where it must win over another admin's.
  else if (others.some(({ values }) => values.has(key))) own.set(key, [counter])
  else own.delete(key)
  if (own.size > LIMITS.boardEntries) {
    throw new ShoalError(
      'limit_exceeded',
      `the board takes ${LIMITS.boardEntries} entries of one admin; delete some first`,
    )
  }
  return own
}

function merge(documents: readonly AdminDocument[]): Map<string, Entry> {
  const merged = new Map<string, Entry>()
  for (const { author, values } of documents) {
    for (const [key, content] of values) {
      const parsed = entrySchema.safeParse(content)
      if (!parsed.success || !keySchema.safeParse(key).success) continue
      const [counter, value] = parsed.data
      const best = merged.get(key)
      const wins =
        best === undefined ||
        counter > best.counter ||
        (counter === best.counter && author > best.author)
      if (wins) merged.set(key, { counter, author, value })
    }
  }
  return merged
}
