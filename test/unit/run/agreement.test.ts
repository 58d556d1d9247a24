import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { agreedPeers, lackedPeers } from '../../../src/run/agreement.ts'

function agreed(sets: Record<string, string[] | undefined>): string {
  return agreedPeers(new Map(Object.entries(sets))).join('')
}

const all = (text: string): string[] => text.split('')

describe('the agreed set', () => {
  test('is everybody when everybody has everybody', () => {
    expect(agreed({ a: all('abc'), b: all('abc'), c: all('abc') })).toBe('abc')
    expect(agreed({ a: all('a') })).toBe('a')
  })

  test('leaves out a peer that died after giving its contribution to some but not to all', () => {
    expect(agreed({ a: all('abcx'), b: all('abc'), c: all('abc'), x: undefined })).toBe('abc')
    expect(agreed({ a: all('abc'), b: all('abc'), c: all('abc') })).toBe('abc')
  })

  test('is the same where that peer had told what it has', () => {
    expect(agreed({ a: all('abcx'), b: all('abc'), c: all('abc'), x: all('ax') })).toBe('abc')
  })

  test('leaves out a peer that collected too little, and a slow one that nobody has', () => {
    expect(agreed({ a: all('abcd'), b: all('abcd'), c: all('abcd'), d: all('ad') })).toBe('abc')
    expect(agreed({ a: all('abc'), b: all('abc'), c: all('abc'), s: all('abcs') })).toBe('abc')
  })

  test('leaves out who is lacked rather than who lacks it: both come to the same set', () => {
    // `z` gave up waiting for `a`, and combines itself alone.
    expect(agreed({ z: all('z') })).toBe('z')
    expect(agreed({ a: all('az'), z: all('z') })).toBe('z')
    expect(agreed({ a: all('abc'), b: all('abc'), c: all('ac') })).toBe('ac')
    expect(agreed({ a: all('abc'), c: all('ac') })).toBe('ac')
  })

  const peers = all('abcdefg')
  const subset = fc.subarray(peers)

  test('has no gaps, and nothing that was not collected', () => {
    const sets = fc.dictionary(fc.constantFrom(...peers), fc.option(subset, { nil: undefined }))
    fc.assert(
      fc.property(sets, (dictionary) => {
        const map = new Map(Object.entries(dictionary))
        const result = agreedPeers(map)
        for (const peer of result) {
          const collected = map.get(peer)
          expect(map.has(peer)).toBe(true)
          for (const other of result) {
            if (other !== peer && collected !== undefined) expect(collected).toContain(other)
          }
        }
        const isWhole = [...map].every(([peer, collected]) =>
          [...map.keys()].every((o) => o === peer || (collected ?? [o]).includes(o)),
        )
        if (isWhole) expect(result).toEqual([...map.keys()].sort())
      }),
    )
  })

  test('is one for all survivors, whatever some know of one that died', () => {
    // Survivors a to d have one another; x reached a part of them, had a part of them, and told a part of them.
    const survivors = all('abcd')
    const part = fc.subarray(survivors)
    const tooFew = fc.subarray(survivors, { maxLength: 3 })
    fc.assert(
      fc.property(tooFew, part, part, (reached, had, told) => {
        const collectedBy = (peer: string): string[] =>
          reached.includes(peer) ? [...survivors, 'x'] : survivors
        const results = survivors.map((self) => {
          const known = collectedBy(self)
          const setOf = (peer: string): string[] | undefined =>
            peer !== 'x' ? collectedBy(peer) : told.includes(self) ? [...had, 'x'] : undefined
          return agreedPeers(new Map(known.map((peer) => [peer, setOf(peer)]))).join('')
        })
        expect(new Set(results)).toEqual(new Set(['abcd']))
      }),
    )
  })
})

describe('peers that were in the round though this one lacks them', () => {
  const lacked = (sets: Record<string, string[] | undefined>): string =>
    lackedPeers(new Map(Object.entries(sets)), 's').join('')

  test('are those that most of the others have', () => {
    expect(lacked({ s: all('abs'), a: all('abx'), b: all('abx') })).toBe('x')
    expect(lacked({ s: all('abcs'), a: all('abcx'), b: all('abcx'), c: all('abc') })).toBe('x')
    expect(lacked({ s: all('abs'), a: all('ab'), b: all('ab') })).toBe('')
  })

  test('are not those that one peer alone, or no majority, tells of', () => {
    expect(lacked({ s: all('as'), a: all('asxyz') })).toBe('')
    expect(lacked({ s: all('abs'), a: all('abx'), b: all('ab') })).toBe('')
    expect(lacked({ s: all('abs'), a: all('abx'), b: undefined })).toBe('')
    const two = { a: all('abcdx'), b: all('abcdx') }
    expect(lacked({ s: all('abcds'), ...two, c: all('abcd'), d: all('abcd') })).toBe('')
  })
})
