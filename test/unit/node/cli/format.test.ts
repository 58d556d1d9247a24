import { describe, expect, test } from 'vitest'
import { bytes, decimal, duration, fields, integer, table } from '../../../../node/cli/format.ts'

describe('text for people', () => {
  test('tables align text to the left and numbers to the right', () => {
    const rows = [
      ['moby', '7/50'],
      ['a', '12/50'],
    ]
    expect(table(['NAME', 'STEP'], rows, 'none')).toEqual([
      'NAME   STEP',
      'moby   7/50',
      'a     12/50',
    ])
    expect(table(['UP'], [['1.2 MB/s'], ['0 B/s']], 'none')).toEqual([
      '      UP',
      '1.2 MB/s',
      '   0 B/s',
    ])
    expect(table(['NAME'], [], 'none')).toEqual(['none'])
  })

  test('fields align their values', () => {
    expect(
      fields([
        ['a', '1'],
        ['long', '2'],
      ]),
    ).toEqual(['a     1', 'long  2'])
  })

  test.each([
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.00 kB'],
    [99_400, '99.4 kB'],
    [99_600, '100 kB'],
    [999_500, '1.00 MB'],
    [1.25e12, '1.25 TB'],
    [1e16, '10000 TB'],
  ])('%d bytes are %s', (count, text) => expect(bytes(count)).toBe(text))

  test('numbers and times', () => {
    expect(integer(1234567)).toBe('1 234 567')
    expect(integer(999)).toBe('999')
    expect(decimal(null)).toBe('-')
    expect(decimal(2.34567)).toBe('2.3457')
    expect([duration(12), duration(59_999), duration(61_000), duration(3_720_000)]).toEqual([
      '12 ms',
      '59 s',
      '1 min 1 s',
      '1 h 2 min',
    ])
  })
})
