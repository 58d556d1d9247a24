import { assert, asyncProperty, string, uint8Array } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { readEventLog, readEventLogText } from '../../../node/event-log-file.ts'

const HEADER = {
  format: 'shoal-events',
  version: 1,
  run: 'r',
  name: 'n',
  parameters: 1,
  outerSteps: 2,
  innerSteps: 3,
  rule: 'diloco',
}
const EVENT = {
  number: 1,
  timeMs: 5,
  event: { type: 'run_status', run: 'r', status: 'training', outerStep: 0 },
}

function bytes(...lines: unknown[]): Uint8Array {
  return new TextEncoder().encode(lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
}

describe('an exported event log', () => {
  test('is read in whatever pieces it comes, with or without a last line end', async () => {
    const whole = bytes(HEADER, EVENT, { ...EVENT, number: 2 })
    for (const size of [1, 7, whole.length]) {
      const pieces = Array.from({ length: Math.ceil(whole.length / size) }, (_, index) =>
        whole.subarray(index * size, (index + 1) * size),
      )
      const log = await readEventLogText(pieces)
      expect(log).toEqual({ header: HEADER, events: [EVENT, { ...EVENT, number: 2 }] })
    }
    expect((await readEventLogText([whole.subarray(0, -1)])).events).toHaveLength(2)
  })

  test('may hold events of later versions, which are passed over', async () => {
    const later = { ...EVENT, event: { type: 'something_new', run: 'r' } }
    expect((await readEventLogText([bytes(HEADER, later, EVENT)])).events).toEqual([EVENT])
  })

  test.each([
    ['nothing', []],
    ['no header', [EVENT]],
    ['a header of another version', [{ ...HEADER, version: 2 }]],
    ['another file', ['text']],
  ])('is refused with %s', async (_, lines) => {
    await expect(readEventLogText([bytes(...lines)])).rejects.toMatchObject({ code: 'usage' })
  })

  test('is refused with a line without end, before it fills the memory', async () => {
    const endless = (function* () {
      for (let piece = 0; piece < 1000; piece++) yield new Uint8Array(1 << 16).fill(97)
      throw new Error('read to the end')
    })()
    await expect(readEventLogText(endless)).rejects.toThrow('a line is too long')
  })

  test('is refused when it is anything else, always by the same fault', async () => {
    await assert(
      asyncProperty(uint8Array({ maxLength: 200 }), async (content) => {
        await expect(readEventLogText([content])).rejects.toMatchObject({ code: 'usage' })
      }),
    )
    await assert(
      asyncProperty(string({ maxLength: 20 }), async (name) => {
        await expect(readEventLog(`/nowhere/${name}`)).rejects.toMatchObject({ code: 'usage' })
      }),
      { numRuns: 20 },
    )
  })
})
