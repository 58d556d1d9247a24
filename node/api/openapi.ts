/** The route table as an OpenAPI 3.1 document. */
import { z } from 'zod'
import { FAULTS } from '../../src/errors.ts'
import { VERSION } from '../version.ts'
import { headerName, pathParameters, sourceOf, type Route } from './route.ts'

type Json = Record<string, unknown>

const OCTETS = 'application/octet-stream'
const BINARY = { type: 'string', format: 'binary' }
const TEXT = { type: 'string' }

/** Operations in the order of the table; `operationId` is the route's name there. */
export function openApiOf(routes: Readonly<Record<string, Route>>): Json & { openapi: string } {
  const paths: Record<string, Json> = {}
  for (const [name, route] of Object.entries(routes)) {
    const path = (paths[route.path] ??= {})
    path[route.method.toLowerCase()] = operationOf(name, route)
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Shoal',
      version: VERSION,
      description:
        'The local API of a Shoal node, on loopback. The token is the content of `api-token` in the data folder.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    security: [{ token: [] }],
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer' } },
      schemas: { Problem: PROBLEM },
    },
  }
}

/** RFC 9457, with our code. */
const PROBLEM: Json = {
  type: 'object',
  required: ['type', 'title', 'status', 'detail', 'code', 'details'],
  properties: {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string', description: 'One line that names the thing and the remedy.' },
    code: { type: 'string', enum: Object.keys(FAULTS) },
    details: { type: 'object' },
  },
}

function operationOf(name: string, route: Route): Json {
  const { summary, body, open } = route
  const named = pathParameters(route)
  const source = sourceOf(route)
  const parameters = [
    ...named.map((field) => parameterOf(route, field, 'path')),
    ...(source === 'json' ? [] : otherFields(route)).map((field) =>
      parameterOf(route, field, source === 'query' ? 'query' : 'header'),
    ),
  ]
  const fields = source === 'json' && route.method !== 'GET' ? jsonBody(route) : undefined
  const content =
    body === undefined
      ? fields
      : { description: body.what, content: { [OCTETS]: { schema: BINARY } } }
  return {
    operationId: name,
    summary,
    ...(open === true && { security: [] }),
    ...(parameters.length > 0 && { parameters }),
    ...(content !== undefined && { requestBody: { required: true, ...content } }),
    responses: {
      ...answersOf(route),
      default: {
        description: 'A fault.',
        content: {
          'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } },
        },
      },
    },
  }
}

function otherFields(route: Route): string[] {
  const named = pathParameters(route)
  return Object.keys(route.input.shape).filter((field) => !named.includes(field))
}

function parameterOf(route: Route, field: string, place: 'path' | 'query' | 'header'): Json {
  const of = route.input.shape[field]
  const isRequired = place === 'path' || of?.safeParse(undefined).success === false
  return {
    name: place === 'header' ? headerName(field) : field,
    in: place,
    required: isRequired,
    // Text in any case: what it is to be read as is the output.
    schema: of === undefined ? {} : jsonSchema(of, 'output'),
  }
}

function jsonBody(route: Route): Json {
  const named = Object.fromEntries(pathParameters(route).map((field) => [field, true as const]))
  const schema = jsonSchema(route.input, 'input')
  const { properties, required, ...rest } = schema
  const without = <T>(entries: [string, T][]): [string, T][] =>
    entries.filter(([field]) => !(field in named))
  const left = Array.isArray(required) ? required.filter((field) => !(String(field) in named)) : []
  return {
    content: {
      'application/json': {
        schema: {
          ...rest,
          properties: Object.fromEntries(without(Object.entries(properties ?? {}))),
          ...(left.length > 0 && { required: left }),
        },
      },
    },
  }
}

function answersOf({ answer, output, summary, contentType = OCTETS }: Route): Json {
  if (answer === 'events') {
    const schema = jsonSchema(output, 'output')
    const description = `${summary} The data of each event:`
    return { 200: { description, content: { 'text/event-stream': { schema } } } }
  }
  if (answer === undefined) {
    const schema = jsonSchema(output, 'output')
    return { 200: { description: 'Done.', content: { 'application/json': { schema } } } }
  }
  const fields = output instanceof z.ZodObject ? Object.entries(output.shape) : []
  const headers = fields.map(([field, of]) => [
    headerName(field),
    { schema: jsonSchema(of, 'output') },
  ])
  return {
    200: {
      description: 'The bytes.',
      headers: Object.fromEntries(headers),
      content: { [contentType]: { schema: contentType === OCTETS ? BINARY : TEXT } },
    },
  }
}

function jsonSchema(schema: z.core.$ZodType, io: 'input' | 'output'): Json {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' })
  return rest
}
