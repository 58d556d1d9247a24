/** Tables for people, in plain text. */

export interface Column<Row> {
  title: string
  cell: (row: Row) => string
  /** Default left; figures read better on the right. */
  align?: 'left' | 'right'
}

/** Columns as wide as their widest cell, two blanks between them, a rule below the titles; ends with a newline. */
export function formatTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const cells = rows.map((row) => columns.map(({ cell }) => cell(row)))
  const titles = columns.map(({ title }) => title)
  const widths = titles.map((title, index) =>
    Math.max(title.length, ...cells.map((line) => line[index]?.length ?? 0)),
  )
  const lineOf = (line: readonly string[]): string =>
    line
      .map((cell, index) => {
        const width = widths[index] ?? 0
        return columns[index]?.align === 'right' ? cell.padStart(width) : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd()
  const rule = widths.map((width) => '-'.repeat(width))
  return [titles, rule, ...cells].map((line) => `${lineOf(line)}\n`).join('')
}
