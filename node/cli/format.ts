/** Text for people: aligned tables, units, shortened names. */
export { bytes, decimal, duration, integer, shortPeer } from '../dashboard/format.js'

/** A count, a share such as 7/50, or a quantity with its unit; `-` when there is none. */
const NUMERIC = /^(-|\d[\d ./]*( [a-z]{1,3}(\/s| \d+ [a-z]{1,3})?)?)$/i

/** Columns aligned by the longest cell; numbers to the right. Without rows, `empty`. */
export function table(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  empty: string,
): string[] {
  if (rows.length === 0) return [empty]
  const all = [header, ...rows]
  const widths = header.map((_, column) =>
    Math.max(...all.map((row) => (row[column] ?? '').length)),
  )
  const isNumeric = header.map((_, column) => rows.every((row) => NUMERIC.test(row[column] ?? '')))
  return all.map((row) =>
    row
      .map((cell, column) => {
        const width = widths[column] ?? 0
        return isNumeric[column] === true ? cell.padStart(width) : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd(),
  )
}

/** Name and value per line, values aligned. */
export function fields(pairs: readonly (readonly [name: string, value: string])[]): string[] {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return pairs.map(([name, value]) => `${name.padEnd(width)}  ${value}`)
}
