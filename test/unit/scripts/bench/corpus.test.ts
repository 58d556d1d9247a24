import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import {
  ALPHABET,
  corpusDataset,
  corpusText,
  corpusTopics,
} from '../../../../scripts/bench/corpus.ts'

/** Printed by the reference generator in Python. */
const TOPIC_DIGESTS = [
  '911058a88198681b236f4a4a49e3d0a18b58a18b4df62f4aca18d5a43437d099',
  '0c575e6657f8cd3d85bc295812b4ba49754a34f8696cf7a9de6982cb4c0ac132',
  '5186a445dca7fdd5a3f6193b4c7241059e00db21c2d44f65be7a6647148ccdcc',
  '4f015d2bef5c77bd180e6ba6aa3d2d638951f5644e029819d107250d9e43a31f',
]

describe('synthetic corpus', () => {
  test('is the reference text, byte by byte', () => {
    const digests = corpusTopics().map((topic) => createHash('sha256').update(topic).digest('hex'))
    expect(digests).toEqual(TOPIC_DIGESTS)
  })

  test('holds out the tail of every topic', async () => {
    const text = corpusText()
    const tails = corpusTopics().map((topic) => topic.slice(54_000))
    expect(text.slice(216_000)).toBe(tails.join(''))
    const { train, validation } = await corpusDataset(32)
    const characters = (tokens: Uint16Array): string =>
      Array.from(tokens, (token) => ALPHABET[token]).join('')
    expect(characters(train)).toBe(text.slice(0, 216_000))
    expect(characters(validation)).toBe(tails.join(''))
  })
})
