/** The command line of a bench: what all of them share. */
import { parseArgs, type ParseArgsOptionsConfig } from 'node:util'
import { messageOf, ShoalError } from '../../src/errors.ts'

const COMMON = { json: { type: 'boolean' } } as const

/** What stands after `npm run bench -- NAME`; every bench knows `--json`. Throws `usage`. */
export function parseBenchOptions<const Own extends ParseArgsOptionsConfig>(
  bench: string,
  args: readonly string[],
  own: Own,
) {
  try {
    return parseArgs({ args: [...args], options: { ...own, ...COMMON } }).values
  } catch (cause) {
    throw new ShoalError('usage', `${messageOf(cause)}; see npm run bench -- ${bench} --help`, {
      cause,
    })
  }
}

/** The number that `text` says, or `fallback` without one; whole unless `isWhole` is false. Throws `usage`. */
export function numberOption(
  flag: string,
  text: string | undefined,
  fallback: number,
  { min, max, isWhole = true }: { min: number; max: number; isWhole?: boolean },
): number {
  const value = text === undefined ? fallback : text.trim() === '' ? Number.NaN : Number(text)
  if (value >= min && value <= max && (!isWhole || Number.isInteger(value))) return value
  const kind = isWhole ? 'a whole number' : 'a number'
  throw new ShoalError('usage', `${flag} is ${kind} from ${min} to ${max}, not '${text}'`)
}
