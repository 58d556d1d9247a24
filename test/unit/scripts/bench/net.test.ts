import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'

const BENCH = join(import.meta.dirname, '../../../../scripts/bench.ts')

async function bench(...args: string[]) {
  const child = spawn(process.execPath, [BENCH, 'net', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const ended = once(child, 'close')
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)])
  const [code]: unknown[] = await ended
  return { stdout, stderr, code }
}

const reportSchema = z.object({
  bench: z.literal('net'),
  transfers: z.array(
    z.object({
      path: z.literal('tcp + tls'),
      megabytesPerSecond: z.number().positive(),
      share: z.null(),
      sourceCpuSecondsPerGigabyte: z.number().positive(),
      sinkCpuSecondsPerGigabyte: z.number().positive(),
    }),
  ),
  calls: z.array(
    z.object({
      bytes: z.number(),
      concurrency: z.number(),
      perSecond: z.number().positive(),
      p50Ms: z.number().positive(),
      p99Ms: z.number().positive(),
    }),
  ),
  line: z.object({ megabitsPerSecond: z.number().positive(), share: z.number() }),
  bars: z.array(z.object({ configuration: z.string(), pass: z.boolean() })),
})

describe('bench of the network', () => {
  test('measures a path between processes: bulk, calls, and over a slow line', async () => {
    const { stdout, code } = await bench('--quick', '--only', 'tcp + tls', '--json')
    const { transfers, calls, line, bars } = reportSchema.parse(JSON.parse(stdout))
    expect(transfers).toHaveLength(1)
    expect(calls.map(({ bytes, concurrency }) => [bytes, concurrency])).toEqual([
      [128, 1],
      [128, 256],
      [262_144, 1],
      [262_144, 256],
    ])
    for (const { p50Ms, p99Ms } of calls) expect(p99Ms).toBeGreaterThanOrEqual(p50Ms)
    // Nothing is faster than the line.
    expect(line.share).toBeLessThan(1.02)
    expect(code).toBe(bars.every(({ pass }) => pass) ? 0 : 1)
  })

  test('refuses a path that it does not know', async () => {
    const { stderr, code } = await bench('--only', 'tcp + tsl')
    expect(stderr).toBe(
      "usage: unknown path 'tcp + tsl': known are raw tcp, raw tls, tcp + tls, tcp + noise, ws + tls, relayed, punched udp, webrtc, blobs\n",
    )
    expect(code).toBe(2)
  })
})
