import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createSchema, schemaHash } from '../../../src/tensor/schema.ts'

const casesSchema = z.array(
  z.object({
    tensors: z.array(z.tuple([z.string(), z.array(z.number())])),
    hash: z.string(),
  }),
)

describe('the hash of a schema', () => {
  test('is the one that scripts compute', () => {
    const cases = casesSchema.parse(
      JSON.parse(readFileSync('test/python/schema-hashes.json', 'utf8')),
    )
    for (const { tensors, hash } of cases) {
      const schema = createSchema(tensors.map(([name, shape]) => ({ name, shape, decay: true })))
      expect(schemaHash(schema)).toBe(hash)
    }
    expect(new Set(cases.map(({ hash }) => hash)).size).toBe(cases.length)
  })
})
