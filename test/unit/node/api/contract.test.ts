/** Every route of the one table has a handler, a client method, an OpenAPI entry, and a command or a reason for none. */
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createHandlers } from '../../../../node/api/handlers.ts'
import { openApiOf } from '../../../../node/api/openapi.ts'
import { headerName, pathParameters, sourceOf, toHeaders } from '../../../../node/api/route.ts'
import type { Route } from '../../../../node/api/route.ts'
import { ROUTES } from '../../../../node/api/routes.ts'
import { COMMANDS } from '../../../../node/cli/program.ts'
import { systemClock } from '../../../../src/clock.ts'
import { createSwarm } from '../../../swarm/swarm.ts'

const PEER = '12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf'
const routes: [string, Route][] = Object.entries(ROUTES)
const operationSchema = z.object({
  operationId: z.string(),
  summary: z.string(),
  parameters: z
    .array(
      z.object({
        name: z.string(),
        in: z.enum(['path', 'query', 'header']),
        required: z.boolean(),
        schema: z.looseObject({ type: z.string().optional() }),
      }),
    )
    .default([]),
  requestBody: z.object({ content: z.record(z.string(), z.looseObject({})) }).optional(),
  responses: z.record(z.string(), z.looseObject({})),
  security: z.array(z.unknown()).optional(),
})
const document = z
  .object({
    openapi: z.literal('3.1.0'),
    paths: z.record(z.string(), z.record(z.string(), operationSchema)),
  })
  .parse(JSON.parse(JSON.stringify(openApiOf(ROUTES))))

test('every route has a handler', async () => {
  const swarm = await createSwarm(1, 'contract')
  const [node] = swarm.nodes
  if (node === undefined) throw new Error('no node')
  const api = createHandlers({
    node,
    token: '',
    clock: systemClock,
    dataDir: '/nowhere',
    apiUrl: () => '',
    shutdown: () => {},
  })
  api.close()
  await swarm.stop()
  const handled = Object.entries(api.handlers).map(([id, { route }]) => [id, route])
  expect(Object.fromEntries(handled)).toEqual(
    Object.fromEntries(routes.filter(([id]) => id !== 'events')),
  )
})

test('no two routes are the same', () => {
  const places = routes.map(
    ([, { method, path }]) => `${method} ${path.replaceAll(/\{\w+\}/g, '*')}`,
  )
  expect(new Set(places).size).toBe(places.length)
})

describe.each(routes)('%s', (id, route) => {
  const named = pathParameters(route)

  test('has input for every name in its path, and text can say the rest', () => {
    expect(Object.keys(route.input.shape)).toEqual(expect.arrayContaining(named))
    if (sourceOf(route) === 'json') return
    for (const [field, schema] of Object.entries(route.input.shape)) {
      const texts = ['1', 'true', 'x', 'fp32', PEER]
      const text = texts.some((value) => z.safeParse(schema, value).success)
      expect({ field, text }).toEqual({ field, text: true })
    }
  })

  test('is of one kind that one method of the client serves', () => {
    const method = { bytes: 'download', events: 'events', json: 'call' }[route.answer ?? 'json']
    expect(method === 'events').toBe(id === 'events')
    if (route.answer === 'bytes') expect(route.output).toBeInstanceOf(z.ZodObject)
    if (route.body !== undefined) expect(['POST', 'PUT']).toContain(route.method)
  })

  test('is in the OpenAPI document', () => {
    const operation = document.paths[route.path]?.[route.method.toLowerCase()]
    expect(operation).toMatchObject({ operationId: id, summary: route.summary })
    const declared = operation?.parameters.map((parameter) => [parameter.in, parameter.name]) ?? []
    const place = sourceOf(route)
    const fields = Object.keys(route.input.shape).filter((field) => !named.includes(field))
    expect(declared).toEqual([
      ...named.map((name) => ['path', name]),
      ...(place === 'query' ? fields.map((name) => ['query', name]) : []),
      ...(place === 'headers' ? fields.map((name) => ['header', headerName(name)]) : []),
    ])
    const types = Object.keys(operation?.requestBody?.content ?? {})
    const expected = {
      query: [],
      json: ['application/json'],
      headers: ['application/octet-stream'],
    }
    expect(types).toEqual(expected[place])
    expect(Object.keys(operation?.responses ?? {})).toEqual(['200', 'default'])
    expect(operation?.security !== undefined).toBe(route.open === true)
  })

  test('has a command, or a reason for none', () => {
    const { command } = route
    if (typeof command === 'string') expect(COMMANDS.map(({ name }) => name)).toContain(command)
    else expect(command.none.length).toBeGreaterThan(10)
  })
})

test('parameters of the document say what they are', () => {
  const step = document.paths['/v1/runs/{run}/outer-step']?.['post']
  expect(step?.parameters).toMatchObject([
    { name: 'run', in: 'path', required: true, schema: { type: 'string' } },
    { name: 'outer-step', in: 'header', required: true, schema: { type: 'integer', minimum: 0 } },
    { name: 'tokens', in: 'header', required: true, schema: { type: 'integer' } },
    { name: 'loss', in: 'header', required: true, schema: { type: 'number' } },
    { name: 'inner-steps', in: 'header', required: false, schema: { type: 'integer' } },
  ])
  expect(step?.responses['200']).toMatchObject({
    headers: { 'next-outer-step': { schema: { type: 'integer' } } },
  })
  const create = document.paths['/v1/runs']?.['post']?.requestBody?.content['application/json']
  expect(create).toMatchObject({
    schema: {
      required: ['spec'],
      properties: {
        spec: { properties: { model: { properties: { layers: { default: 4 } } } } },
        trainer: { enum: ['embedded', 'outside'] },
      },
    },
  })
})

test('headers say numbers, lists and nothing', () => {
  const fields = { outerStep: 3, partners: ['a', 'b'], distance: null, other: undefined }
  expect(toHeaders(fields)).toEqual({ 'outer-step': '3', partners: 'a,b' })
})
