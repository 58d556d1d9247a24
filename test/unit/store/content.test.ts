import { CID } from 'multiformats/cid'
import { identity } from 'multiformats/hashes/identity'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  cidOf,
  decodeCbor,
  decodeCid,
  encodeCbor,
  matchesCid,
  parseCid,
} from '../../../src/store/content.ts'

const invalid = expect.objectContaining({ code: 'message_invalid' })

describe('CIDs', () => {
  test('are CIDv1 with sha-256, known to every IPFS tool', async () => {
    // `echo -n hello | ipfs add --raw-leaves --cid-version 1`
    expect((await cidOf(new TextEncoder().encode('hello'), 'raw')).toString()).toBe(
      'bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq',
    )
    expect((await cidOf(encodeCbor({}), 'dag-cbor')).code).toBe(0x71)
  })

  test('round-trip as text and bytes', async () => {
    const cid = await cidOf(Uint8Array.of(1, 2, 3), 'raw')
    expect(parseCid(cid.toString()).equals(cid)).toBe(true)
    expect(decodeCid(cid.bytes).equals(cid)).toBe(true)
  })

  test('match their bytes and no others', async () => {
    const bytes = Uint8Array.of(1, 2, 3)
    const cid = await cidOf(bytes, 'raw')
    expect(await matchesCid(bytes, cid)).toBe(true)
    expect(await matchesCid(Uint8Array.of(1, 2, 4), cid)).toBe(false)
    expect(await matchesCid(bytes, CID.createV1(0x55, identity.digest(bytes)))).toBe(false)
  })

  test.each(['', 'abc', 'bafkreib', '../../etc/passwd', 'Qm'.repeat(400)])(
    'refuse the text %j',
    (text) => {
      expect(() => parseCid(text)).toThrow(invalid)
    },
  )

  test('refuse other versions, codecs and hashes', async () => {
    const cid = await cidOf(Uint8Array.of(1), 'raw')
    const others = [
      CID.parse('QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR'),
      CID.createV1(0x70, cid.multihash),
      CID.createV1(0x55, identity.digest(Uint8Array.of(1))),
    ]
    for (const other of others) {
      expect(() => parseCid(other.toString())).toThrow(invalid)
      expect(() => decodeCid(other.bytes)).toThrow(invalid)
    }
  })

  test('arbitrary bytes never decode to something else than a CID of ours', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          expect(decodeCid(bytes).bytes).toEqual(bytes)
        } catch (thrown) {
          expect(thrown).toMatchObject({ code: 'message_invalid' })
        }
      }),
    )
  })
})

describe('dag-cbor', () => {
  test('round-trips values', () => {
    const value = { b: [1, -2, 1.5, null, true], a: Uint8Array.of(1, 2), text: 'ü' }
    expect(decodeCbor(encodeCbor(value), LIMITS.manifestBytes)).toEqual(value)
  })

  test('every finite number survives', () => {
    fc.assert(
      fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (value) => {
        expect(decodeCbor(encodeCbor({ value }), 100)).toEqual({ value: value === 0 ? 0 : value })
      }),
      { numRuns: 1000 },
    )
    for (const value of [2 ** 53, -(2 ** 53), 1e20, Number.MAX_VALUE, Number.MAX_SAFE_INTEGER]) {
      expect(Number(decodeCbor(encodeCbor(value), 100))).toBe(value)
    }
  })

  test('is canonical: the order of keys does not change the bytes', () => {
    expect(encodeCbor({ bb: 1, a: 2 })).toEqual(encodeCbor({ a: 2, bb: 1 }))
  })

  test('refuses a second spelling of a value', () => {
    // {b: 1, a: 2}: keys out of order. 0x18 0x01: the integer 1 in two bytes.
    expect(() => decodeCbor(Uint8Array.of(0xa2, 0x61, 0x62, 1, 0x61, 0x61, 2), 100)).toThrow(
      invalid,
    )
    expect(() => decodeCbor(Uint8Array.of(0x18, 0x01), 100)).toThrow(invalid)
  })

  test('refuses too much, too deep and trailing bytes', () => {
    expect(() => decodeCbor(new Uint8Array(101), 100)).toThrow(invalid)
    expect(() => decodeCbor(new Uint8Array(1 << 20).fill(0x81), 1 << 20)).toThrow(invalid)
    expect(() => decodeCbor(Uint8Array.of(1, 1), 100)).toThrow(invalid)
    expect(() => encodeCbor(new Uint8Array(200), 100)).toThrow(
      expect.objectContaining({ code: 'limit_exceeded' }),
    )
  })

  test('does not write what it cannot read', () => {
    for (const value of [undefined, Number.NaN, { a: Number.POSITIVE_INFINITY }]) {
      expect(() => encodeCbor(value)).toThrow(expect.objectContaining({ code: 'internal' }))
    }
  })

  test('arbitrary bytes decode to what encodes back to them, or to message_invalid', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        let value: unknown
        try {
          value = decodeCbor(bytes, 40)
        } catch (thrown) {
          expect(thrown).toMatchObject({ code: 'message_invalid' })
          return
        }
        expect(encodeCbor(value)).toEqual(bytes)
      }),
      { numRuns: 1000 },
    )
  })
})
