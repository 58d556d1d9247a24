import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { boardOf, withEntry, type AdminDocument } from '../../../src/state/board.ts'
import type { BoardValue } from '../../../src/state/shared-state.ts'

/** Admins who see each other's documents at once. */
function createBoard(): {
  write(author: string, key: string, value: BoardValue | undefined): void
  documents(): AdminDocument[]
} {
  const documents = new Map<string, AdminDocument>()
  return {
    write(author, key, value) {
      const values = withEntry([...documents.values()], author, key, value)
      documents.set(author, { author, values })
    },
    documents: () => [...documents.values()],
  }
}

describe('board', () => {
  test('the last of several admins wins, in whatever order the documents come', () => {
    const board = createBoard()
    board.write('anna', 'paused', true)
    board.write('ben', 'paused', false)
    board.write('anna', 'note', 'first')
    board.write('ben', 'note', undefined)
    board.write('anna', 'cid', 'bafy')
    const expected = { cid: 'bafy', paused: false }
    expect(boardOf(board.documents())).toEqual(expected)
    expect(boardOf(board.documents().toReversed())).toEqual(expected)
    board.write('anna', 'paused', true)
    board.write('anna', 'note', 'again')
    expect(boardOf(board.documents())).toEqual({ cid: 'bafy', note: 'again', paused: true })
  })

  test('writes of admins who do not see each other merge alike on all sides', () => {
    const left = withEntry([], 'anna', 'paused', true)
    const right = withEntry([], 'ben', 'paused', false)
    const documents = [
      { author: 'anna', values: left },
      { author: 'ben', values: right },
    ]
    expect(boardOf(documents)).toEqual({ paused: false })
    expect(boardOf(documents.toReversed())).toEqual({ paused: false })
  })

  test('behaves like one map when writes follow each other', () => {
    const write = fc.record({
      author: fc.constantFrom('anna', 'ben', 'cleo'),
      key: fc.constantFrom('a', 'b', 'c'),
      value: fc.oneof(fc.string(), fc.integer(), fc.boolean(), fc.constantFrom(null, undefined)),
    })
    fc.assert(
      fc.property(fc.array(write, { maxLength: 40 }), (writes) => {
        const board = createBoard()
        const model = new Map<string, BoardValue>()
        for (const { author, key, value } of writes) {
          board.write(author, key, value)
          if (value === undefined) model.delete(key)
          else model.set(key, value)
          expect(boardOf(board.documents())).toEqual(Object.fromEntries(model))
        }
      }),
    )
  })

  test('an admin alone leaves no trace of what it deletes', () => {
    const board = createBoard()
    for (let round = 0; round < 1000; round++) {
      board.write('anna', `key${round}`, round)
      board.write('anna', `key${round}`, undefined)
    }
    expect(board.documents()[0]?.values.size).toBe(0)
  })

  test.each<[string, BoardValue]>([
    ['', 1],
    ['__proto__', 1],
    ['with space', 1],
    ['x'.repeat(65), 1],
    ['key', 'x'.repeat(LIMITS.boardTextLength + 1)],
    ['key', NaN],
    ['key', Infinity],
  ])('refuses to write %j = %j', (key, value) => {
    expect(() => withEntry([], 'anna', key, value)).toThrow(
      expect.objectContaining({ code: 'body_invalid' }),
    )
  })

  test('is full at its limit', () => {
    const values = new Map(
      Array.from({ length: LIMITS.boardEntries }, (_, index) => [`key${index}`, [1, index]]),
    )
    const documents = [{ author: 'anna', values }]
    expect(() => withEntry(documents, 'anna', 'more', 1)).toThrow(
      expect.objectContaining({ code: 'limit_exceeded' }),
    )
    expect(withEntry(documents, 'anna', 'key7', 2).get('key7')).toEqual([2, 2])
  })

  test('leaves out entries that are none', () => {
    const values = new Map<string, unknown>([
      ['good', [3, 'yes']],
      ['__proto__', [1, 'polluted']],
      ['naked', 'text'],
      ['object', [1, { a: 1 }]],
      ['long', [1, 'x'.repeat(LIMITS.boardTextLength + 1)]],
      ['zero', [0, 1]],
      ['triple', [1, 2, 3]],
    ])
    expect(boardOf([{ author: 'anna', values }])).toEqual({ good: 'yes' })
  })
})
