import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import * as Y from 'yjs'
import { LIMITS } from '../../../src/limits.ts'
import { clientIdOf, snapshotOf, updateOf, valuesOf } from '../../../src/state/document.ts'

const CLIENT = 1234

/** The update that `change` makes on a document of `client`, after `before`. */
function craft(
  client: number,
  change: (document: Y.Doc) => void,
  before: readonly Uint8Array[] = [],
): Uint8Array {
  const document = new Y.Doc()
  for (const update of before) Y.applyUpdate(document, update)
  document.clientID = client
  let made = new Uint8Array(0)
  document.on('update', (bytes: Uint8Array) => (made = bytes.slice()))
  document.transact(() => change(document))
  return made
}

const jsonValue = fc.oneof(
  fc.string({ maxLength: 20 }),
  fc.double({ noNaN: true }),
  fc.integer(),
  fc.boolean(),
  fc.constant(null),
  fc.array(fc.string({ maxLength: 5 }), { maxLength: 4 }),
)
const valuesArbitrary = fc
  .dictionary(fc.constantFrom('a', 'b', 'c', 'd', '__proto__', 'constructor'), jsonValue)
  .map((object) => new Map<string, unknown>(Object.entries(object)))

describe('document of one author', () => {
  test('updates lead from any values to any others', () => {
    fc.assert(
      fc.property(fc.array(valuesArbitrary, { minLength: 1, maxLength: 8 }), (history) => {
        const [first = new Map(), ...later] = history
        const updates = [snapshotOf(CLIENT, first)]
        expect(valuesOf(CLIENT, updates)).toEqual(first)
        for (const values of later) {
          updates.push(updateOf(CLIENT, updates, values))
          expect(valuesOf(CLIENT, updates)).toEqual(values)
        }
      }),
    )
  })

  test('an update that changes nothing is two bytes', () => {
    const values = new Map([['a', ['x']]])
    expect(updateOf(CLIENT, [snapshotOf(CLIENT, values)], new Map([['a', ['x']]])).length).toBe(2)
  })

  test('a snapshot does not remember what came before', () => {
    let updates = [snapshotOf(CLIENT, new Map([['step', 0]]))]
    const [fresh = new Uint8Array()] = updates
    for (let step = 1; step <= 1000; step++) {
      const values = new Map([['step', step]])
      updates =
        step % 32 === 0
          ? [snapshotOf(CLIENT, values)]
          : [...updates, updateOf(CLIENT, updates, values)]
    }
    const values = valuesOf(CLIENT, updates)
    expect(values).toEqual(new Map([['step', 1000]]))
    expect(snapshotOf(CLIENT, values).length).toBeLessThanOrEqual(fresh.length + 2)
  })

  test('each life of an author has its own client id, the same everywhere', () => {
    expect(clientIdOf('peer', 1)).toBe(clientIdOf('peer', 1))
    const ids = new Set(Array.from({ length: 100 }, (_, epoch) => clientIdOf('peer', epoch)))
    expect(ids.size).toBe(100)
  })
})

describe('an update that no honest writer makes is refused:', () => {
  const base = snapshotOf(CLIENT, new Map([['a', 1]]))
  const root = (document: Y.Doc): Y.Map<unknown> => document.getMap('values')
  const skipped = craft(CLIENT, (document) => root(document).set('b', 2), [
    base,
    craft(CLIENT, (document) => root(document).set('c', 3), [base]),
  ])

  const cases: Record<string, Uint8Array> = {
    'structs of another client': craft(CLIENT + 1, (d) => root(d).set('a', 2), [base]),
    'deletion of another client': craft(CLIENT, (d) => root(d).delete('z'), [
      base,
      craft(CLIENT + 1, (d) => root(d).set('z', 2)),
    ]),
    'link to another client': craft(CLIENT, (d) => root(d).set('z', 3), [
      base,
      craft(CLIENT + 1, (d) => root(d).set('z', 2)),
    ]),
    'another root': craft(CLIENT, (d) => d.getMap('elsewhere').set('a', 2), [base]),
    'a nested map': craft(CLIENT, (d) => root(d).set('a', new Y.Map()), [base]),
    'a text': craft(CLIENT, (d) => root(d).set('a', new Y.Text('x')), [base]),
    'a subdocument': craft(CLIENT, (d) => root(d).set('a', new Y.Doc()), [base]),
    bytes: craft(CLIENT, (d) => root(d).set('a', new Uint8Array(3)), [base]),
    'a list item in the root': craft(CLIENT, (d) => d.getArray('values').push([1]), []),
    'a missing predecessor': skipped,
    'a history again': base,
    'nothing at all': new Uint8Array(0),
    'a claim of 2^42 structs': Uint8Array.of(1, 128, 128, 128, 128, 128, 128, 1, 210, 9, 1, 0, 1),
    'a claim of 2^42 deletions': Uint8Array.of(0, 1, 210, 9, 128, 128, 128, 128, 128, 128, 1, 0, 1),
  }

  test.each(Object.entries(cases))('%s', (_, update) => {
    expect(() => valuesOf(CLIENT, [base, update])).toThrow(
      expect.objectContaining({ code: 'message_invalid' }),
    )
    // The document itself is fine without it.
    expect(valuesOf(CLIENT, [base])).toEqual(new Map([['a', 1]]))
  })

  test('too many structs or entries', () => {
    const entries = Array.from({ length: LIMITS.boardEntries + 1 }, (_, index) => [`${index}`, 1])
    const many = new Map(entries.map(([key, value]) => [String(key), value]))
    expect(() => valuesOf(CLIENT, [snapshotOf(CLIENT, many)])).toThrow('rules of its author')
    const often = craft(CLIENT, (document) => {
      for (let time = 0; time <= LIMITS.updateStructs; time++) root(document).set('a', time)
    })
    expect(() => valuesOf(CLIENT, [often])).toThrow('rules of its author')
  })

  test('the v2 encoding reads as an update of nothing', () => {
    expect(valuesOf(CLIENT, [Y.convertUpdateFormatV1ToV2(base)])).toEqual(new Map())
  })

  test('random bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          // What passes can only be an update without structs and deletions, with any bytes behind it.
          expect(valuesOf(CLIENT, [base, bytes])).toEqual(new Map([['a', 1]]))
          expect([...bytes.subarray(0, 2)]).toEqual([0, 0])
        } catch (error) {
          expect(error).toMatchObject({ code: 'message_invalid' })
        }
      }),
      { numRuns: 500 },
    )
  })
})
