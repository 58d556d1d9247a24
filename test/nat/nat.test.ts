/** A seeded part of `npm run test:nat`: some pairs of the matrix, and the disturbance that says most. */
import { describe, expect, test } from 'vitest'
import { runDisturbance } from './disturbances.ts'
import { whyNoLab } from './lab.ts'
import { runMatrix } from './matrix.ts'
import { subsetOf } from './subset.ts'

const why = whyNoLab()
if (why !== undefined)
  console.warn(`NAT tests are skipped, there can be no laboratory here: ${why}`)

/** Direct whatever the luck: the search for a symmetric NAT's port is left out. */
const DIRECT: ReadonlySet<string> = new Set([
  'portrestricted:portrestricted',
  'symmetric:restricted',
])

describe.skipIf(why !== undefined)('two daemons behind NATs', () => {
  test('reach each other and average, directly where a hole can be made', async () => {
    const pairs = subsetOf('ci')
    const results = await runMatrix({ pairs, delayMs: 0, onResult: () => {} })
    expect(results).toHaveLength(pairs.length)
    for (const result of results) {
      expect(result).toMatchObject({ fault: null, hasAveraged: true })
      if (DIRECT.has(`${result.from}:${result.to}`)) {
        expect(result).toMatchObject({ directMs: expect.any(Number) })
      }
    }
  }, 120_000)

  test('reach each other by WebRTC where they may do nothing else', async () => {
    const pairs = [{ from: 'portrestricted', to: 'portrestricted' }] as const
    const onResult = (): void => {}
    const results = await runMatrix({ pairs, delayMs: 0, punch: 'webrtc', onResult })
    expect(results).toMatchObject([{ fault: null, hasAveraged: true, transport: 'webrtc' }])
  }, 120_000)

  test('lose no round when the relay between them falls silent', async () => {
    const result = await runDisturbance('relay silent', undefined)
    expect(result).toMatchObject({ before: 'relayed', fault: null })
    expect(result.averaged).toBe(result.rounds)
  }, 120_000)
})
