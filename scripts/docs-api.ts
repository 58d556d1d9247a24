/** The local API as text for people: of each route what it does, an example to type, its fields, its answer. */
import { z } from 'zod'
import { FAULTS } from '../src/errors.ts'
import { headerName, pathParameters, sourceOf, type Route } from '../node/api/route.ts'
import { ROUTES } from '../node/api/routes.ts'

/** What stands for a field in examples. */
const EXAMPLES: Readonly<Record<string, unknown>> = {
  run: 'RUN',
  peer: '12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf',
  checkpoint: 'CID',
  cid: 'CID',
  file: 'model.safetensors',
  address: '/ip4/192.0.2.1/tcp/4010',
  spec: { name: 'mine', data: '/home/me/text.txt' },
  key: 'note',
  folder: '/home/me/my-model',
  group: 'any-name',
  round: 0,
  outerStep: 0,
  tokens: 1000,
  loss: 2.5,
  service: 'echo',
  id: 'REQUEST',
  message: 'not now',
  code: 'CODE',
}

const DASHBOARD_FILE = ROUTES.dashboardFile.path

const START = `# The local API

\`shoal daemon\` serves it on loopback. Address and token are in the data folder; \`api\` calls it without telling the token
to other users of the machine, who can see the arguments of every command:

\`\`\`sh
DATA=\${SHOAL_DATA_DIR:-$HOME/.local/share/shoal}
URL=$(sed 's/.*"url":"\\([^"]*\\)".*/\\1/' "$DATA/api.json")
JSON='Content-Type: application/json'
BYTES='Content-Type: application/octet-stream'
api() { printf 'Authorization: Bearer %s\\n' "$(cat "$DATA/api-token")" | curl -H @- "$@"; }
\`\`\`

Faults are \`application/problem+json\`; \`code\` is one of these, \`detail\` one line that names the remedy:
`

/** An example of a call that needs no more than the route does. */
export interface ExampleCall {
  method: Route['method']
  path: string
  headers: Record<string, string>
  /** Of a route that takes JSON. */
  json: object | undefined
}

export function exampleCall(route: Route): ExampleCall {
  const named = pathParameters(route)
  const exampleOf = (field: string): unknown => {
    const example = route.path === DASHBOARD_FILE ? 'main.js' : EXAMPLES[field]
    if (example === undefined) throw new Error(`no example of the field ${field}`)
    return example
  }
  const needed = Object.entries(route.input.shape)
    .filter(([field, schema]) => !named.includes(field) && isRequired(schema))
    .map(([field]): [string, unknown] => [field, exampleOf(field)])
  const path = named.reduce(
    (text, field) => text.replace(`{${field}}`, String(exampleOf(field))),
    route.path,
  )
  const source = sourceOf(route)
  const inHeaders = source === 'headers' ? needed : []
  return {
    method: route.method,
    path,
    headers: Object.fromEntries(inHeaders.map(([k, v]) => [headerName(k), String(v)])),
    json: source === 'json' ? Object.fromEntries(needed) : undefined,
  }
}

function isRequired(schema: z.core.$ZodType): boolean {
  return !z.safeParse(schema, undefined).success
}

export function apiReference(): string {
  const codes = Object.entries(FAULTS).map(([code, { status }]) => `\`${code}\` (${status})`)
  const routes: [string, Route][] = Object.entries(ROUTES)
  const sections = routes.map(([name, route]) => sectionOf(name, route))
  return [START, `${codes.join(', ')}.`, ...sections].join('\n')
}

function sectionOf(name: string, route: Route): string {
  const { method, path, summary, command, open } = route
  const same =
    typeof command === 'string' ? `As \`shoal ${command}\`.` : `No command: ${command.none}.`
  const token = open === true ? ' Needs no token.' : ''
  const head = [`\n## ${method} ${path}\n`, `${summary} ${same}${token}\n`]
  const typed = `In TypeScript \`ROUTES.${name}\`:`
  return [
    ...head,
    '```sh',
    curlOf(route),
    '```\n',
    ...fieldLines(route),
    `${typed} ${answerOf(route)}`,
  ].join('\n')
}

function curlOf(route: Route): string {
  const { method, path, headers, json } = exampleCall(route)
  const words = route.open === true ? ['curl'] : ['api']
  if (route.answer === 'events') words.push('-N')
  const hasBody = method === 'POST' || method === 'PUT'
  // What curl does by itself for a body, or without one.
  if (method !== 'GET' && json === undefined) words.push('-X', method)
  if (hasBody) words.push('-H', json === undefined ? '"$BYTES"' : '"$JSON"')
  for (const [name, value] of Object.entries(headers)) words.push('-H', `'${name}: ${value}'`)
  if (json !== undefined) words.push('-d', `'${JSON.stringify(json)}'`)
  if (route.body !== undefined) words.push('-T', 'FILE')
  words.push(`"$URL${path}"`)
  if (route.answer === 'bytes') words.push('-o', 'ANSWER')
  return words.join(' ')
}

function fieldLines(route: Route): string[] {
  const source = sourceOf(route)
  const named = pathParameters(route)
  const place = { query: 'query', json: 'body', headers: 'header' }[source]
  const lines = Object.entries(route.input.shape).map(([field, schema]) => {
    const where = named.includes(field) ? 'path' : place
    const written = where === 'header' ? headerName(field) : field
    return `- \`${written}\` (${where}): ${kindOf(schema)}`
  })
  const body = route.body === undefined ? [] : [`- the body: ${route.body.what}`]
  return lines.length + body.length === 0 ? [] : [...lines, ...body, '']
}

/** In the words of JSON schema; of what may also be text, as in headers and queries, what the text says. */
function kindOf(schema: z.core.$ZodType): string {
  const { enum: values, default: standard, anyOf = [], ...rest } = facts(schema)
  const either = [rest, ...z.array(z.unknown()).parse(anyOf).map(facts)]
  const types = either.flatMap(({ type }) => (typeof type === 'string' ? [type] : []))
  const kind = Array.isArray(values) ? `one of ${values.join(', ')}` : types.join(' or ')
  const limits = ['minimum', 'maximum', 'maxLength'].flatMap((bound) => {
    const value = Number(rest[bound])
    return Math.abs(value) < Number.MAX_SAFE_INTEGER ? [`${bound} ${value}`] : []
  })
  const without = standard === undefined ? 'optional' : `default ${JSON.stringify(standard)}`
  return [kind, ...limits, ...(isRequired(schema) ? [] : [without])].join(', ')
}

function facts(schema: unknown): Record<string, unknown> {
  const value: unknown =
    schema instanceof z.core.$ZodType
      ? z.toJSONSchema(schema, { io: 'output', unrepresentable: 'any' })
      : schema
  return z.record(z.string(), z.unknown()).parse(value)
}

function answerOf({ answer, output }: Route): string {
  const fields = output instanceof z.ZodObject ? Object.keys(output.shape) : []
  if (answer === 'events') return 'server-sent events.'
  if (answer === undefined) return `JSON with \`${fields.join('`, `')}\`.`
  const headers = fields.map((field) => `\`${headerName(field)}\``)
  return headers.length === 0 ? 'bytes.' : `bytes, with the headers ${headers.join(', ')}.`
}
