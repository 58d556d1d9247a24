import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { z } from 'zod'

const BENCH = join(import.meta.dirname, '../../../../scripts/bench.ts')
const reportSchema = z.object({
  bench: z.literal('api'),
  mebibytes: z.literal(4),
  rows: z.array(
    z.object({
      direction: z.enum(['upload', 'download']),
      bareMegabytesPerSecond: z.number().positive(),
      apiMegabytesPerSecond: z.number().positive(),
    }),
  ),
  bars: z.array(z.object({ bar: z.string(), pass: z.boolean(), figure: z.number() })),
})

test('the API bench moves a model both ways and reports', async () => {
  const args = [BENCH, 'api', '--mebibytes', '4', '--rounds', '1', '--json']
  // So little says nothing about speed, and a busy machine may miss a bar: exit code 1.
  const outcome = promisify(execFile)(process.execPath, args).catch((thrown: unknown) =>
    z.object({ code: z.literal(1), stdout: z.string() }).parse(thrown),
  )
  const { rows, bars } = reportSchema.parse(JSON.parse((await outcome).stdout))
  expect(rows.map(({ direction }) => direction)).toEqual(['upload', 'download'])
  expect(bars.map(({ bar }) => bar)).toContain('speed')
})

test.each([
  [['--mebibytes', '2048'], "usage: --mebibytes is a whole number from 1 to 1024, not '2048'\n"],
  [['--round', '1'], "usage: Unknown option '--round'"],
])('refuses %j with the remedy', async (args, line) => {
  const failed = promisify(execFile)(process.execPath, [BENCH, 'api', ...args])
  await expect(failed).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining(line) })
})
