/** Text for people: aligned tables, units, shortened names. */

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

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB']

/** 1 234 567 as `1.23 MB`. */
export function bytes(count: number): string {
  let value = count
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit++
  }
  const digits = unit === 0 || value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2
  return `${value.toFixed(digits)} ${UNITS[unit]}`
}

/** 1234567 as `1 234 567`. */
export function integer(count: number): string {
  return Math.round(count)
    .toString()
    .replaceAll(/\B(?=(\d{3})+$)/g, ' ')
}

/** Losses and distances; `-` when there is none yet. */
export function decimal(value: number | null, digits = 4): string {
  return value === null ? '-' : value.toFixed(digits)
}

export function duration(ms: number): string {
  const seconds = Math.floor(ms / 1000)
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}

/** Peer ids of one kind begin alike; their ends tell them apart. */
export function shortPeer(peer: string): string {
  return peer.length <= 12 ? peer : `…${peer.slice(-8)}`
}
