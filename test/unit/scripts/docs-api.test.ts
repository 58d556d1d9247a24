import { describe, expect, test } from 'vitest'
import { headerName, pathParameters, type Route } from '../../../node/api/route.ts'
import { ROUTES } from '../../../node/api/routes.ts'
import { apiReference, exampleCall } from '../../../scripts/docs-api.ts'

const routes: [string, Route][] = Object.entries(ROUTES)
const text = apiReference()

describe.each(routes)('the example of %s', (_, route) => {
  const { method, path, headers, json } = exampleCall(route)
  const pattern = new RegExp(`^${route.path.replaceAll(/\{\w+\}/g, '([^/]+)')}$`)
  const [, ...named] = pattern.exec(path) ?? []

  test('is what the route takes', () => {
    expect(method).toBe(route.method)
    const fields = Object.keys(route.input.shape)
    const given = fields.flatMap((field) => {
      const value = headers[headerName(field)]
      return value === undefined ? [] : [[field, value]]
    })
    expect(given).toHaveLength(Object.keys(headers).length)
    const inPath = pathParameters(route).map((field, index) => [field, named[index]])
    const input = { ...Object.fromEntries([...given, ...inPath]), ...json }
    expect(route.input.safeParse(input)).toMatchObject({ success: true })
  })

  test('is printed, with every field and what comes back', () => {
    const from = text.indexOf(`\n## ${method} ${route.path}\n`)
    const section = text.slice(from, text.indexOf('\n## ', from + 1))
    expect(section).toContain(route.summary)
    expect(section).toContain(`"$URL${path}"`)
    for (const field of Object.keys(route.input.shape)) {
      expect(section).toMatch(
        new RegExp(`^- \`(${field}|${headerName(field)})\` \\(\\w+\\): \\w`, 'm'),
      )
    }
    expect(section).toMatch(/^In TypeScript `ROUTES\.\w+`: \w/m)
  })
})

test('the reference has no holes', () => {
  expect(text).not.toMatch(/undefined|\[object|or ,| , /)
  expect(text.match(/^## /gm)).toHaveLength(routes.length)
})
