/** A measured figure held against its bar. */
import type { Column } from './table.ts'

export interface Finding {
  /** Which bar, by its number. */
  bar: string
  configuration: string
  figure: number
  relation: '<=' | '>='
  limit: number
  unit: Unit
}

export type Unit = keyof typeof UNITS

const signed = (value: number, text: string): string => (value < 0 ? text : `+${text}`)

const UNITS = {
  /** Excess over something else. */
  excess: (value: number) => signed(value, `${(100 * value).toFixed(1)} %`),
  /** Part of something else. */
  share: (value: number) => `${(100 * value).toFixed(1)} %`,
  /** A distance that should be next to nothing. */
  error: (value: number) => (value === 0 ? '0' : value.toExponential(1)),
  distance: (value: number) => value.toFixed(4),
  bytes: (value: number) => `${Math.round(value)} B`,
  count: (value: number) => value.toFixed(0),
} as const

/** A figure that is not a number meets no bar. */
export function isMet({ figure, relation, limit }: Finding): boolean {
  return relation === '<=' ? figure <= limit : figure >= limit
}

export const FINDING_COLUMNS: readonly Column<Finding>[] = [
  { title: 'bar', cell: ({ bar }) => bar },
  { title: 'what', cell: ({ configuration }) => configuration },
  { title: 'figure', align: 'right', cell: ({ unit, figure }) => UNITS[unit](figure) },
  {
    title: 'asked',
    align: 'right',
    cell: ({ relation, unit, limit }) => `${relation} ${UNITS[unit](limit)}`,
  },
  { title: 'result', cell: (finding) => (isMet(finding) ? 'pass' : 'FAIL') },
]
