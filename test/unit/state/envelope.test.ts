import { decode, encode } from '@ipld/dag-cbor'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  conflict,
  parseEnvelope,
  signEnvelope,
  verifyEnvelope,
  type Envelope,
  type EnvelopeContent,
} from '../../../src/state/envelope.ts'
import { identityOf, RUN } from './swarm.ts'

const author = await identityOf('author')
const other = await identityOf('other')

const content = (overrides: Partial<EnvelopeContent> = {}): EnvelopeContent => ({
  run: RUN,
  author: author.peerId,
  document: 'record',
  epoch: 7,
  sequence: 1,
  previous: null,
  kind: 'snapshot',
  update: Uint8Array.of(0, 0),
  ...overrides,
})

function parsed(bytes: Uint8Array): Envelope {
  const envelope = parseEnvelope(bytes)
  if (typeof envelope === 'string') throw new Error(envelope)
  return envelope
}

/** The wire form of `body`, signed by `author` over exactly what is sent. */
async function signedBody(body: unknown): Promise<Uint8Array> {
  const bytes = encode(body)
  return encode([bytes, await author.sign(bytes)])
}

/** What `signEnvelope` puts into the body, to be bent by a test. */
function bodyOf(envelope: Envelope): Record<string, unknown> {
  const [body] = decode<[Uint8Array, Uint8Array]>(envelope.bytes)
  return decode(body)
}

describe('envelope', () => {
  test('arrives as it was signed', async () => {
    const sent = await signEnvelope(author, content({ update: Uint8Array.of(1, 2, 3) }))
    expect(parsed(sent.bytes)).toEqual(sent)
    expect(await verifyEnvelope(parsed(sent.bytes))).toBe(true)
    const next = await signEnvelope(
      author,
      content({ sequence: 2, previous: sent.hash, kind: 'update' }),
    )
    expect(parsed(next.bytes)).toEqual(next)
  })

  test('no changed byte passes', async () => {
    const { bytes } = await signEnvelope(author, content({ update: new Uint8Array(40) }))
    for (let index = 0; index < bytes.length; index++) {
      for (const bit of [1, 128]) {
        const changed = bytes.with(index, (bytes[index] ?? 0) ^ bit)
        const envelope = parseEnvelope(changed)
        const passes = typeof envelope !== 'string' && (await verifyEnvelope(envelope))
        expect([index, passes]).toEqual([index, false])
      }
    }
  })

  test('no bytes make it throw', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(parseEnvelope(bytes)).toBe('malformed')
      }),
    )
    fc.assert(
      fc.property(fc.anything({ maxDepth: 3 }), (value) => {
        let bytes: Uint8Array
        try {
          bytes = encode(value)
        } catch {
          return
        }
        expect(parseEnvelope(bytes)).toBe('malformed')
      }),
    )
    // 30 000 nested arrays.
    expect(parseEnvelope(new Uint8Array(30_000).fill(0x81))).toBe('malformed')
  })

  test('another one than the author cannot have signed it', async () => {
    const forged = await signEnvelope(other, content())
    expect(await verifyEnvelope(parsed(forged.bytes))).toBe(false)
  })

  test('a signature over the body alone, as of another protocol, does not count', async () => {
    const honest = await signEnvelope(author, content())
    const bytes = await signedBody(bodyOf(honest))
    expect(parsed(bytes).hash).toBe(honest.hash)
    expect(await verifyEnvelope(parsed(bytes))).toBe(false)
  })

  test.each([
    ['version', 'x'],
    ['run', 'r'.repeat(129)],
    ['author', 'nobody'],
    ['document', 'diary'],
    ['epoch', 0],
    ['epoch', 1.5],
    ['sequence', -1],
    ['previous', new Uint8Array(31)],
    ['previous', new Uint8Array(32)],
    ['kind', 'update'],
    ['update', 'text'],
    ['extra', 1],
  ])('refuses a body with %s = %s', async (key, value) => {
    const body = bodyOf(await signEnvelope(author, content()))
    expect(parseEnvelope(await signedBody({ ...body, [key]: value }))).toBe('malformed')
  })

  test('tells another version from nonsense', async () => {
    const body = bodyOf(await signEnvelope(author, content()))
    const newer = { ...body, version: 2, colour: 'blue' }
    expect(parseEnvelope(await signedBody(newer))).toBe('version_unsupported')
  })

  test('refuses a second spelling of the author and of the encoding', async () => {
    const { publicKey } = author.privateKey
    const body = bodyOf(await signEnvelope(author, content()))
    const spelled = publicKey.toCID().toString()
    expect(parseEnvelope(await signedBody({ ...body, author: spelled }))).toBe('malformed')
    const [bytes, signature] = decode<[Uint8Array, Uint8Array]>(
      (await signEnvelope(author, content())).bytes,
    )
    // The map of nine entries with its length in a byte of its own.
    expect(bytes[0]).toBe(0xa9)
    const longer = Uint8Array.of(0xb8, 9, ...bytes.subarray(1))
    expect(parseEnvelope(encode([longer, signature]))).toBe('malformed')
  })

  test('the limit depends on the document', async () => {
    const update = new Uint8Array(LIMITS.recordEnvelopeBytes)
    const record = await signEnvelope(author, content({ update }))
    expect(parseEnvelope(record.bytes)).toBe('oversized')
    const board = await signEnvelope(author, content({ document: 'board', update }))
    expect(typeof parseEnvelope(board.bytes)).toBe('object')
    expect(parseEnvelope(new Uint8Array(LIMITS.envelopeBytes + 1))).toBe('oversized')
  })
})

describe('conflict', () => {
  test('is two bodies under one number, or a successor of something else', async () => {
    const first = await signEnvelope(author, content())
    const twin = await signEnvelope(author, content({ update: Uint8Array.of(1) }))
    const next = await signEnvelope(
      author,
      content({ sequence: 2, previous: first.hash, kind: 'update' }),
    )
    const fork = await signEnvelope(
      author,
      content({ sequence: 2, previous: twin.hash, kind: 'snapshot' }),
    )
    const later = await signEnvelope(author, content({ sequence: 4, previous: next.hash }))
    expect(conflict(first, twin)).toBe(true)
    expect(conflict(next, fork)).toBe(true)
    expect(conflict(first, fork)).toBe(true)
    expect(conflict(fork, first)).toBe(true)
    expect(conflict(first, first)).toBe(false)
    expect(conflict(first, next)).toBe(false)
    expect(conflict(next, later)).toBe(false)
  })

  test('is not across epochs, documents, runs or authors', async () => {
    const first = await signEnvelope(author, content())
    const update = Uint8Array.of(1)
    for (const elsewhere of [{ epoch: 8 }, { document: 'board' as const }, { run: 'other' }]) {
      expect(conflict(first, await signEnvelope(author, content({ update, ...elsewhere })))).toBe(
        false,
      )
    }
    const foreign = await signEnvelope(other, content({ author: other.peerId, update }))
    expect(conflict(first, foreign)).toBe(false)
  })
})
