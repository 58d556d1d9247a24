/**
 * `npm run docs` prints the reference of every public export, from the sources' own comments, and of the local API, from
 * its route table; the package has both.
 */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { apiReference } from './docs-api.ts'

const ROOT = join(import.meta.dirname, '..')
const SOURCE_CONDITION = '@shoal/source'

const packageSchema = z.object({
  exports: z.record(
    z.string(),
    z.union([z.string(), z.object({ [SOURCE_CONDITION]: z.string() })]),
  ),
})

export interface PublicExport {
  /** What to import it from, such as `shoal/engine`. */
  entry: string
  name: string
  /** Empty when it has none, which the tests refuse. */
  doc: string
  /** Its declaration without a body. */
  declaration: string
}

/** All exports of all entry points of the package, in the order of the sources. */
export function publicExports(): PublicExport[] {
  const { exports } = packageSchema.parse(JSON.parse(read('package.json')))
  return Object.entries(exports).flatMap(([path, target]) => {
    if (typeof target === 'string') return []
    const entry = path.replace('.', 'shoal')
    return namesOf(target[SOURCE_CONDITION]).map(({ file, name }) =>
      declarationOf(entry, name, read(file)),
    )
  })
}

export function referenceText(): string {
  const all = publicExports()
  const lines = [
    '# The library',
    '',
    'Every public export of the package, by entry point. An example is `scripts/embed.ts`.',
  ]
  for (const [entry, exported] of Map.groupBy(all, (each) => each.entry)) {
    lines.push('', `## \`${entry}\``)
    for (const { name, doc, declaration } of exported) {
      lines.push('', `### ${name}`, '', doc, '', '```ts', declaration, '```')
    }
  }
  return `${lines.join('\n')}\n`
}

function read(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8')
}

/** Where each export of a module is declared. */
function namesOf(file: string): { file: string; name: string }[] {
  const text = read(file)
  const own = [...text.matchAll(DECLARED)].map(([, , name = '']) => ({ file, name }))
  const others = [...text.matchAll(/^export (?:type )?\{([^}]*)\} from '(\.[^']+)'$/gm)]
  return [
    ...own,
    ...others.flatMap(([, names = '', from = '']) =>
      names
        .split(',')
        .map((name) => name.trim().replace(/^type /, ''))
        .filter((name) => name !== '')
        .map((name) => ({ file: join(dirname(file), from), name })),
    ),
  ]
}

const DECLARED = /^export (?:async )?(function|const|interface|type|class) (\w+)/gm

/** Of a class that is declared in the first column. */
const METHOD_BODY = / \{\n(?: {4}.*\n)+ {2}\}/g

function declarationOf(entry: string, name: string, text: string): PublicExport {
  const found = [...text.matchAll(DECLARED)].find(([, , declared]) => declared === name)
  if (found === undefined) throw new Error(`${name} is not declared where src/index.ts says`)
  const from = found.index
  const before = /\/\*\*(?<comment>(?:(?!\*\/)[\s\S])*)\*\/\n$/.exec(text.slice(0, from))
  const doc = (before?.groups?.['comment'] ?? '')
    .split('\n')
    .map((line) => line.replace(/^\s*\* ?/, '').trimEnd())
    .join('\n')
    .trim()
  const rest = text.slice(from).replace(/^export (async )?/, '')
  const ends = { function: functionEnd, const: constEnd, type: typeEnd }
  const end = Object.entries(ends).find(([kind]) => kind === found[1])?.[1] ?? blockEnd
  const declaration = rest.slice(0, end(rest)).replaceAll(METHOD_BODY, '').trimEnd()
  return { entry, name, doc, declaration }
}

/** Of an interface or class: a brace in the first column closes it, or it is empty. */
function blockEnd(text: string): number {
  const line = text.indexOf('\n')
  return text.slice(0, line).endsWith('}') ? line : text.indexOf('\n}') + 2
}

/** Of a function: before its body, whose brace follows neither a colon nor a union. */
function functionEnd(text: string): number {
  let depth = 0
  for (let at = 0; at < text.length; at++) {
    const character = text[at] ?? ''
    const before = text.slice(0, at).trimEnd().at(-1) ?? ''
    if (character === '{' && depth === 0 && !':|&=<'.includes(before)) return at
    if ('({['.includes(character)) depth++
    if (')}]'.includes(character)) depth--
  }
  return text.length
}

/** Of a constant: before its value, which is an implementation. */
function constEnd(text: string): number {
  return text.indexOf(' =')
}

/** Of a type: what is indented belongs to it. */
function typeEnd(text: string): number {
  return /\n(?![ |&})])/.exec(text)?.index ?? text.length
}

if (import.meta.main) process.stdout.write(`${referenceText()}\n${apiReference()}\n`)
