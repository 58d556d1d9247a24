import { describe, expect, test } from 'vitest'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { z } from 'zod'
import { CODEC_IDS, codecs } from '../../../../src/codec/codec.ts'
import { LIMITS } from '../../../../src/limits.ts'

const BENCH = join(import.meta.dirname, '../../../../scripts/bench.ts')
const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, [BENCH, 'codec', ...args])

const reportSchema = z.object({
  bench: z.literal('codec'),
  codecs: z.array(
    z.object({
      id: z.enum(CODEC_IDS),
      bytesPerParameter: z.number(),
      encodeMegabytesPerSecond: z.number().positive(),
      decodeMegabytesPerSecond: z.number().positive(),
      relativeError: z.number(),
    }),
  ),
  messages: z.array(z.never()),
})

describe('bench of codecs', () => {
  test('measures every codec, and simulates nothing when quick', async () => {
    const { stdout } = await bench('--quick', '--json')
    const report = reportSchema.parse(JSON.parse(stdout))
    expect(report.codecs.map(({ id }) => id)).toEqual(CODEC_IDS)
    for (const { id, bytesPerParameter, relativeError } of report.codecs) {
      const { sliceElements } = LIMITS
      expect(bytesPerParameter).toBe(codecs[id].encodedBytes(sliceElements) / sliceElements)
      expect(relativeError).toBeLessThan(1)
    }
    // Figures of the oracle: 1.1 % for int8 in blocks of 128, 15 % for int4 in blocks of 64.
    const errorOf = new Map(report.codecs.map(({ id, relativeError }) => [id, relativeError]))
    expect(errorOf.get('fp32')).toBe(0)
    expect(errorOf.get('int8-128')).toBeCloseTo(0.011, 2)
    expect(errorOf.get('int4-64')).toBeCloseTo(0.15, 1)
  })

  test.each([
    [['--outer-steps', '0'], "usage: --outer-steps is a whole number from 1 to 10000, not '0'"],
    [['--quick', '--outer-steps', '9'], 'usage: --quick simulates nothing'],
    [['--fast'], 'see npm run bench -- codec --help'],
  ])('refuses %j with the remedy', async (args, line) => {
    await expect(bench(...args)).rejects.toMatchObject({
      code: 2,
      stdout: '',
      stderr: expect.stringContaining(line),
    })
  })
})
