import { describe, expect, test } from 'vitest'
import { formatTable } from '../../../../scripts/bench/table.ts'

interface Row {
  name: string
  figure: number
}

const COLUMNS = [
  { title: 'name', cell: (row: Row) => row.name },
  { title: 'figure', align: 'right', cell: (row: Row) => row.figure.toFixed(1) },
] as const

describe('table', () => {
  test('aligns every column to its widest cell and leaves no blanks at the end', () => {
    const rows = [
      { name: 'a long name', figure: 1 },
      { name: 'b', figure: 12_345.67 },
    ]
    expect(formatTable(COLUMNS, rows)).toBe(
      [
        'name          figure',
        '-----------  -------',
        'a long name      1.0',
        'b            12345.7',
        '',
      ].join('\n'),
    )
    expect(formatTable([COLUMNS[0]], rows)).toBe('name\n-----------\na long name\nb\n')
  })

  test('shows the titles when there are no rows', () => {
    expect(formatTable(COLUMNS, [])).toBe('name  figure\n----  ------\n')
  })
})
