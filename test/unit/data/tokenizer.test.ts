import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { createTokenizer, tokenizerSpecFor } from '../../../src/data/tokenizer.ts'
import { LIMITS } from '../../../src/limits.ts'
import { tokenizerSchema } from '../../../src/run/manifest.ts'

const pace = { clock: systemClock }
const utf8 = (text: string) => new TextEncoder().encode(text)
/** Any code points but lone surrogates and NUL, which is no text. */
const text = fc.string({ unit: 'binary', minLength: 1, maxLength: 200 }).map((any) => {
  return any.replaceAll('\0', '0')
})

function code(value: string): { code: string } {
  return expect.objectContaining({ code: value })
}

describe('the char tokenizer', () => {
  test('has the distinct characters of the text in code-point order', async () => {
    const spec = await tokenizerSpecFor('char', utf8('hello, wörld 🐟\r\n🐋'), pace)
    const expected = ['\n', '\r', ' ', ',', 'd', 'e', 'h', 'l', 'o', 'r', 'w', 'ö', '🐋', '🐟']
    expect(spec).toEqual({ kind: 'char', vocabulary: expected })
    expect(createTokenizer(spec).vocabularySize).toBe(14)
  })

  test('goes there and back, and its spec fits a manifest', async () => {
    await fc.assert(
      fc.asyncProperty(text, async (any) => {
        fc.pre(!any.startsWith('\ufeff'))
        const spec = tokenizerSchema.parse(await tokenizerSpecFor('char', utf8(any), pace))
        const tokenizer = createTokenizer(spec)
        const tokens = tokenizer.encode(any)
        expect(tokens.length).toBe(Array.from(any).length)
        expect(tokens.every((token) => token < tokenizer.vocabularySize)).toBe(true)
        expect(tokenizer.decode(tokens)).toBe(any)
      }),
    )
  })

  test('names a character outside the vocabulary and its offset', () => {
    const tokenizer = createTokenizer({ kind: 'char', vocabulary: ['a', 'b', '🐋'] })
    expect([...tokenizer.encode('b🐋a')]).toEqual([1, 2, 0])
    const encode = () => tokenizer.encode('a🐋é', 100)
    expect(encode).toThrow(code('data_unusable'))
    expect(encode).toThrow(/character "é" \(U\+00E9\) at offset 102 .*: leave it out/)
    expect(() => tokenizer.encode('a\n')).toThrow(/character "\\n" \(U\+000A\) at offset 1/)
    // Halves of a pair, and what is beyond the largest character.
    expect(() => tokenizer.encode('\udc0b')).toThrow(/U\+DC0B/)
    expect(() => tokenizer.encode('🐌')).toThrow(/U\+1F40C/)
  })

  test('refuses tokens that it does not have', () => {
    const tokenizer = createTokenizer({ kind: 'char', vocabulary: ['a'] })
    expect(() => tokenizer.decode([0, 1])).toThrow(/token 1 is outside/)
    expect(() => tokenizer.decode([-1])).toThrow(/token -1 is outside/)
  })

  test.each([
    [['b', 'a'], /not in code-point order at "a"/],
    [['a', 'a'], /not in code-point order at "a"/],
    [['🐋', '\uffff'], /not in code-point order/],
    [['ab'], /"ab" in the vocabulary is not one character/],
    [[''], /not one character/],
    [['\ud83d'], /not one character/],
  ])('refuses the vocabulary %j of a manifest', (vocabulary, why) => {
    const create = () => createTokenizer({ kind: 'char', vocabulary })
    expect(create).toThrow(code('spec_invalid'))
    expect(create).toThrow(why)
  })

  test('takes as many characters as the limit, no more', async () => {
    const distinct = (count: number) =>
      utf8(Array.from({ length: count }, (_, i) => String.fromCodePoint(0x4e00 + i)).join(''))
    const most = await tokenizerSpecFor('char', distinct(LIMITS.vocabularySize), pace)
    expect(createTokenizer(most).vocabularySize).toBe(LIMITS.vocabularySize)
    const more = tokenizerSpecFor('char', distinct(LIMITS.vocabularySize + 1), pace)
    await expect(more).rejects.toMatchObject({ code: 'data_unusable' })
    await expect(more).rejects.toThrow(/4097 distinct characters, .* use tokenizer = "byte"/)
  })
})

describe('the byte tokenizer', () => {
  test('goes there and back', async () => {
    const spec = tokenizerSchema.parse(await tokenizerSpecFor('byte', utf8('any'), pace))
    const tokenizer = createTokenizer(spec)
    expect(tokenizer.vocabularySize).toBe(256)
    fc.assert(
      fc.property(text, (any) => {
        const tokens = tokenizer.encode(any)
        expect([...tokens]).toEqual([...utf8(any)])
        expect(tokenizer.decode(tokens)).toBe(any)
      }),
    )
  })

  test('shows half a character as U+FFFD, and refuses what is no byte', () => {
    const tokenizer = createTokenizer({ kind: 'byte' })
    expect(tokenizer.decode([0x61, 0xc3])).toBe('a\ufffd')
    expect(() => tokenizer.decode([256])).toThrow(/token 256 is outside/)
  })
})
