/** Turns what zod says about input from outside into one line that names the thing and the remedy. */
import { z } from 'zod'
import { ShoalError } from '../src/errors.ts'
import type { FaultCode } from '../src/errors.ts'

/** Parses `value`; throws a fault with `code` whose message begins with `subject` and names the first bad field. */
export function parseInput<S extends z.ZodType>(
  schema: S,
  value: unknown,
  code: FaultCode,
  subject: string,
): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const { issues } = result.error
  const fields = issues.map((issue) => ({ path: issue.path.join('.'), message: issue.message }))
  const more = issues.length > 1 ? ` (and ${issues.length - 1} more)` : ''
  throw new ShoalError(code, `${subject}: ${lineOf(issues[0], schema, value)}${more}`, {
    details: { fields: fields.slice(0, 16) },
  })
}

function lineOf(issue: z.core.$ZodIssue | undefined, schema: z.ZodType, value: unknown): string {
  if (issue === undefined) return 'invalid'
  const path = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0] ?? ''
    const known = keysAt(schema, issue.path)
    const guess = nearest(key, known)
    const full = path === '' ? key : `${path}.${key}`
    return guess === undefined
      ? `unknown key '${full}', known are ${known.join(', ')}`
      : `unknown key '${full}', did you mean '${guess}'?`
  }
  const isKind = issue.code === 'invalid_type' || issue.code === 'invalid_union'
  const missing = isKind && valueAt(value, issue.path) === undefined
  if (missing) return `'${path}' is missing`
  const message = issue.message.replace(/^Invalid input: /, '').replaceAll(/\s*\n\s*/g, ' ')
  if (message.startsWith('is missing')) return `'${path}' ${message}`
  return path === '' ? message : `'${path}': ${message.charAt(0).toLowerCase()}${message.slice(1)}`
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  let at = value
  for (const key of path) {
    if (typeof at !== 'object' || at === null) return undefined
    at = Reflect.get(at, key)
  }
  return at
}

/** Keys that an object schema knows at `path`; read from its JSON schema, which hides zod's wrappers. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let at: unknown = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' })
  for (const key of path) at = valueAt(at, ['properties', key]) ?? valueAt(at, ['items'])
  const properties = valueAt(at, ['properties'])
  return typeof properties === 'object' && properties !== null ? Object.keys(properties) : []
}

/** The candidate closest to `word`, when it is close enough to be a typing error. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

/** Levenshtein distance; words longer than 64 characters are no typing errors of a key. */
function editDistance(a: string, b: string): number {
  if (a.length > 64 || b.length > 64) return Infinity
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const current = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      current.push(Math.min(change, (previous[j] ?? 0) + 1, (current[j - 1] ?? 0) + 1))
    }
    previous = current
  }
  return previous[b.length] ?? Infinity
}
