import { describe, expect, test } from 'vitest'
import { systemClock, type Clock } from '../../../src/clock.ts'
import { createDataset } from '../../../src/data/dataset.ts'
import { createTokenizer, tokenizerSpecFor } from '../../../src/data/tokenizer.ts'
import { LIMITS } from '../../../src/limits.ts'

const pace = { clock: systemClock }
const bytes = createTokenizer({ kind: 'byte' })
const utf8 = (text: string) => new TextEncoder().encode(text)
const options = { tokenizer: bytes, validationFraction: 0.05, context: 64 }
const line = 'It is not down in any map; true places never are.\r\n'

async function expectUnusable(data: Uint8Array, why: RegExp, some = options): Promise<void> {
  const creating = createDataset(data, some, pace)
  await expect(creating).rejects.toMatchObject({ code: 'data_unusable' })
  await expect(creating).rejects.toThrow(why)
}

describe('createDataset', () => {
  test('splits off the tail for validation and keeps every token', async () => {
    const text = line.repeat(100)
    const { train, validation } = await createDataset(utf8(text), options, pace)
    expect(validation.length).toBe(Math.floor(text.length * 0.05))
    expect(bytes.decode(train) + bytes.decode(validation)).toBe(text)
    expect(train.buffer).toBeInstanceOf(SharedArrayBuffer)
  })

  test('drops a leading byte order mark and nothing else', async () => {
    const { train } = await createDataset(utf8('\ufeff' + line.repeat(100)), options, pace)
    expect(bytes.decode(train).startsWith(line + line)).toBe(true)
    const inner = await createDataset(utf8('a\ufeff' + line.repeat(100)), options, pace)
    expect(bytes.decode(inner.train).startsWith('a\ufeffIt')).toBe(true)
  })

  test('text of many pieces is whole, gives way between them, and can be stopped', async () => {
    const text = 'aé漢🐋 '.repeat(250_000) // 2.75 MB: characters lie across every border
    const data = utf8(text)
    let pauses = 0
    const clock: Clock = {
      ...systemClock,
      sleep: (ms, signal) => {
        pauses++
        return systemClock.sleep(ms, signal)
      },
    }
    const tokenizer = createTokenizer(await tokenizerSpecFor('char', data, pace))
    const { train, validation } = await createDataset(data, { ...options, tokenizer }, { clock })
    expect(pauses).toBe(2)
    expect(train.length + validation.length).toBe(5 * 250_000)
    expect(tokenizer.decode(train) + tokenizer.decode(validation) === text).toBe(true)

    const signal = AbortSignal.abort()
    const stopped = createDataset(data, options, { clock: systemClock, signal })
    await expect(stopped).rejects.toMatchObject({ code: 'aborted' })
  })

  test.each([0, 1, 2, 3])('a character may lie across a border by %i bytes', async (shift) => {
    const text = 'a'.repeat(shift) + '🐋'.repeat(300_000)
    const { train, validation } = await createDataset(utf8(text), options, pace)
    expect(Buffer.from([...train.slice(-5), ...validation.slice(0, 5)])).toEqual(
      Buffer.from(text).subarray(train.length - 5, train.length + 5),
    )
    expect(train.length + validation.length).toBe(shift + 1_200_000)
  })

  test('names the offset of a foreign character in the whole text', async () => {
    const tokenizer = createTokenizer({ kind: 'char', vocabulary: ['a', '🐋'] })
    const data = utf8('🐋a'.repeat(500_000) + 'b')
    await expectUnusable(data, /"b" \(U\+0062\) at offset 1000000 /, { ...options, tokenizer })
  })

  test('refuses empty data', async () => {
    await expectUnusable(new Uint8Array(0), /the data is empty: name a text file/)
    await expectUnusable(utf8('\ufeff'), /the data is empty/)
  })

  test('refuses binary data', async () => {
    await expectUnusable(utf8(`${line.repeat(100)}\0`), /binary \(byte 5100 is NUL\): only plain/)
    const utf16 = new Uint8Array(Buffer.from(line.repeat(100), 'utf16le'))
    await expectUnusable(utf16, /binary \(byte 1 is NUL\)/)
  })

  test.each([
    ['a stray byte', [0xff], 0],
    ['latin-1', [0xe9, 0x20], 0],
    ['an overlong form', [0xc0, 0xaf], 0],
    ['a surrogate', [0xed, 0xa0, 0x80], 0],
    ['half a character at the end', [0xf0, 0x9f, 0x90], 0],
    ['a long row of continuation bytes', [0xc3, 0xa9, ...Array<number>(10).fill(0x80)], 2],
  ])('refuses what is not UTF-8 and names the byte: %s', async (_name, wrong, at) => {
    for (const before of [0, 2999, (1 << 20) - 1, 1 << 20]) {
      const data = new Uint8Array(before + wrong.length).fill(0x61)
      data.set(wrong, before)
      const creating = createDataset(data, options, pace)
      await expect(creating).rejects.toMatchObject({ code: 'data_unusable' })
      await expect(creating).rejects.toThrow(`not UTF-8 (byte ${before + at})`)
    }
  })

  test('refuses too few tokens, and says what to do', async () => {
    await expectUnusable(utf8('x'.repeat(LIMITS.dataTokensMin - 1)), /1999 tokens, 2000 are/)
    const data = utf8('x'.repeat(2000))
    await createDataset(data, { ...options, context: 99 }, pace)
    await expectUnusable(data, /100 tokens are held out .* takes 101.*raise validationFraction/, {
      ...options,
      context: 100,
    })
  })
})
