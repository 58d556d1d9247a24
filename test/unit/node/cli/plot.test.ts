import { describe, expect, test } from 'vitest'
import { plot } from '../../../../node/cli/plot.ts'

describe('plot', () => {
  test('is nothing without values', () => {
    expect(plot([], { width: 10, height: 3 })).toEqual([])
  })

  test('reaches from one eighth of a row to the top', () => {
    expect(plot([1, 2, 3, 4, 5, 6, 7, 8], { width: 8, height: 1 })).toEqual(['8.000 ▁▂▃▄▅▆▇█'])
  })

  test('labels the largest value above and the smallest below', () => {
    const rows = plot([4, 1], { width: 2, height: 3 })
    expect(rows).toEqual(['4.000 █', '      █', '1.000 █▁'])
  })

  test('is flat for equal values', () => {
    expect(plot([2, 2], { width: 2, height: 2 })).toEqual(['2.000', '2.000 ▁▁'])
  })

  test('averages values that share a column', () => {
    const width = 2
    expect(plot([5, 7, 1, 3], { width, height: 1 })).toEqual(plot([6, 2], { width, height: 1 }))
  })

  test('widens few values, though not without bound', () => {
    const [row = ''] = plot([1, 2], { width: 60, height: 1 })
    expect(row).toBe('2.000 ▁▁▁▁████')
  })

  test('never exceeds its width', () => {
    for (let count = 1; count < 200; count++) {
      const values = Array.from({ length: count }, (_, i) => Math.sin(i))
      for (const row of plot(values, { width: 17, height: 4 })) {
        expect(row.length).toBeLessThanOrEqual('-1.000 '.length + 17)
      }
    }
  })
})
