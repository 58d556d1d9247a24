import { describe, expect, test } from 'vitest'
import { elementsOf, wordOf } from '../../../../node/net/xml-elements.ts'

const all = (text: string, name: string): string[] => [...elementsOf(text, name)]

describe('elements', () => {
  test('are found by their whole name, with attributes or without', () => {
    const text = '<as><a>1</a><a x="y">2</a><ab>3</ab><a\n>\n4 </a></as><a/>'
    expect(all(text, 'a')).toEqual(['1', '2', '\n4 '])
    expect(all('<l><s><t>1</t></s><s><t>2</t></s></l>', 's')).toEqual(['<t>1</t>', '<t>2</t>'])
    for (const none of ['', '<a', '<a>', '<a x', '</a>', '<a></ab>']) {
      expect(all(none, 'a')).toEqual([])
    }
  })

  test('may be one word', () => {
    expect(wordOf('<a> 1.2.3.4\n</a>', 'a')).toBe('1.2.3.4')
    expect(wordOf('<a></a><a>1 2</a><a><b>3</b></a><a>4</a>', 'a')).toBe('4')
    expect(wordOf('<a>1', 'a')).toBe(undefined)
  })

  // Where the time grows with the square of the length, any of these takes many minutes.
  test.each(['<a>', '<a ', '<a', '<a><', '<a> ', '<a></', '<a></a', '<a>x', '<a>\n</a >'])(
    'without their ends are read once: %j',
    (piece) => {
      const text = piece.repeat((8 << 20) / piece.length)
      expect(all(text, 'a')).toEqual([])
      expect(wordOf(text, 'a')).toBe(undefined)
    },
  )

  test('of nothing but spaces are read once', () => {
    expect(wordOf(`<a>${' '.repeat(8 << 20)}x y</a>`, 'a')).toBe(undefined)
    expect(wordOf('<a> </a>'.repeat(1 << 18), 'a')).toBe(undefined)
  })
})
