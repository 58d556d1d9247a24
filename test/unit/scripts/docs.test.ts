import { expect, test } from 'vitest'
import { publicExports, referenceText } from '../../../scripts/docs.ts'

test.each(publicExports().map((each) => [`${each.entry} ${each.name}`, each] as const))(
  '%s has a comment and a declaration',
  (_, { name, doc, declaration }) => {
    expect(doc.length).toBeGreaterThan(10)
    expect(declaration).toContain(name)
    expect(declaration).not.toMatch(/\b(return|super)\b/)
    const opened = declaration.split('{').length
    expect(declaration.split('}').length).toBe(opened)
  },
)

test('every entry point is there', () => {
  const entries = new Set(publicExports().map(({ entry }) => entry))
  expect([...entries]).toEqual([
    'shoal',
    'shoal/client',
    'shoal/data-folder',
    'shoal/engine',
    'shoal/routes',
    'shoal/transports',
  ])
  expect(publicExports().map(({ name }) => name)).toContain('createNode')
})

test('the reference names every one of them', () => {
  const text = referenceText()
  for (const { entry, name, doc, declaration } of publicExports()) {
    const section = text.slice(text.indexOf(`## \`${entry}\``))
    expect(section).toContain(`### ${name}\n\n${doc}\n\n\`\`\`ts\n${declaration}\n\`\`\``)
  }
})
