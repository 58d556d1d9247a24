/** Text to token ids and back: bytes of UTF-8, or characters of a vocabulary that is part of the manifest. */
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { readText, type Pace } from './text.ts'

/** The manifest's `tokenizer`. Characters stand in code-point order; the token id is the index. */
export type TokenizerSpec = { kind: 'byte' } | { kind: 'char'; vocabulary: string[] }

export interface Tokenizer {
  readonly vocabularySize: number
  /**
   * Throws `data_unusable` naming the first character outside the vocabulary; `offset` is where the text begins in
   * the whole, in characters.
   */
  encode(text: string, offset?: number): Uint16Array
  /** Bytes that are no UTF-8 become U+FFFD. Throws `internal` on ids outside the vocabulary. */
  decode(tokens: ArrayLike<number>): string
}

const CODE_POINTS = 0x110000
const BYTE_VALUES = 256

/** Throws `spec_invalid` when a manifest's vocabulary is not distinct characters in code-point order. */
export function createTokenizer(spec: TokenizerSpec): Tokenizer {
  return spec.kind === 'byte' ? createByteTokenizer() : createCharTokenizer(spec.vocabulary)
}

/** The tokenizer for a new run on `data`. Throws `data_unusable` as `readText`, and on too large a vocabulary. */
export async function tokenizerSpecFor(
  kind: TokenizerSpec['kind'],
  data: Uint8Array,
  pace: Pace,
): Promise<TokenizerSpec> {
  if (kind === 'byte') return { kind }
  const seen = new Uint8Array(CODE_POINTS)
  for await (const piece of readText(data, pace)) {
    for (let i = 0; i < piece.length; i++) {
      const codePoint = piece.codePointAt(i)!
      if (codePoint > 0xffff) i++
      seen[codePoint] = 1
    }
  }
  const vocabulary: string[] = []
  for (let codePoint = 0; codePoint < CODE_POINTS; codePoint++) {
    if (seen[codePoint] === 1) vocabulary.push(String.fromCodePoint(codePoint))
  }
  if (vocabulary.length > LIMITS.vocabularySize) {
    throw new ShoalError(
      'data_unusable',
      `the data has ${vocabulary.length} distinct characters, more than ${LIMITS.vocabularySize}: use tokenizer = "byte"`,
    )
  }
  return { kind, vocabulary }
}

function createByteTokenizer(): Tokenizer {
  return {
    vocabularySize: BYTE_VALUES,
    encode: (text) => new Uint16Array(new TextEncoder().encode(text)),
    decode: (tokens) => {
      const bytes = new Uint8Array(tokens.length)
      for (let i = 0; i < tokens.length; i++) {
        if (!(tokens[i]! >= 0 && tokens[i]! < BYTE_VALUES)) throw unknownToken(tokens[i])
        bytes[i] = tokens[i]!
      }
      return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
    },
  }
}

function createCharTokenizer(vocabulary: readonly string[]): Tokenizer {
  const codePoints = vocabulary.map(soleCodePoint)
  const misplaced = codePoints.findIndex((codePoint, i) => i > 0 && codePoint <= codePoints[i - 1]!)
  if (misplaced !== -1) {
    throw new ShoalError(
      'spec_invalid',
      `the vocabulary is not in code-point order at ${named(codePoints[misplaced]!)}`,
    )
  }
  /** Token id plus 1 by code point; 0 is unknown. */
  const idsAfter = new Uint16Array((codePoints.at(-1) ?? 0) + 1)
  for (const [id, codePoint] of codePoints.entries()) idsAfter[codePoint] = id + 1
  return {
    vocabularySize: vocabulary.length,
    encode(text, offset = 0) {
      const tokens = new Uint16Array(text.length)
      let count = 0
      for (let i = 0; i < text.length; i++) {
        const codePoint = text.codePointAt(i)!
        const after = idsAfter[codePoint] ?? 0
        if (after === 0) throw unknownCharacter(codePoint, offset + count)
        if (codePoint > 0xffff) i++
        tokens[count++] = after - 1
      }
      return tokens.subarray(0, count)
    },
    decode(tokens) {
      let text = ''
      for (let i = 0; i < tokens.length; i++) {
        const character = vocabulary[tokens[i]!]
        if (character === undefined) throw unknownToken(tokens[i])
        text += character
      }
      return text
    },
  }
}

function soleCodePoint(character: string): number {
  const codePoint = character.codePointAt(0)
  const isWhole = codePoint !== undefined && character === String.fromCodePoint(codePoint)
  const isSurrogate = codePoint !== undefined && codePoint >= 0xd800 && codePoint <= 0xdfff
  if (!isWhole || isSurrogate) {
    throw new ShoalError(
      'spec_invalid',
      `${JSON.stringify(character.slice(0, 8))} in the vocabulary is not one character`,
    )
  }
  return codePoint
}

function unknownCharacter(codePoint: number, offset: number): ShoalError {
  return new ShoalError(
    'data_unusable',
    `character ${named(codePoint)} at offset ${offset} is not in the vocabulary: leave it out, or use a run with the byte tokenizer`,
    { details: { codePoint, offset } },
  )
}

function unknownToken(token: number | undefined): ShoalError {
  return new ShoalError('internal', `token ${token} is outside the vocabulary`)
}

/** A character as people read it in one line: `"é" (U+00E9)`. */
function named(codePoint: number): string {
  const hex = codePoint.toString(16).toUpperCase().padStart(4, '0')
  return `${JSON.stringify(String.fromCodePoint(codePoint))} (U+${hex})`
}
