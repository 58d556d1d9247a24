import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  DER,
  decodeDer,
  decodeDerInside,
  encodeDer,
  encodeObjectIdentifier,
} from '../../../../node/net/der.ts'

describe('DER', () => {
  test.each([
    ['1.2.840.10045.4.3.2', '06082a8648ce3d040302'],
    ['1.3.6.1.4.1.53594.1.1', '060a2b0601040183a25a0101'],
    ['2.5.4.5', '0603550405'],
  ])('encodes the object identifier %s', (dotted, hex) => {
    expect(Buffer.from(encodeObjectIdentifier(dotted)).toString('hex')).toBe(hex)
  })

  test.each([0, 1, 127, 128, 255, 256, 65_535, 65_536, 1_000_000])(
    'reads what it wrote, %i bytes long',
    (length) => {
      const content = new Uint8Array(length).fill(7)
      const bytes = encodeDer(DER.octetString, content)
      const [element, ...more] = decodeDer(bytes)
      expect(more).toEqual([])
      expect(element?.tag).toBe(DER.octetString)
      expect(Buffer.compare(element?.content ?? new Uint8Array(1), content)).toBe(0)
      expect(element?.bytes.length).toBe(bytes.length)
    },
  )

  test('reads elements within elements', () => {
    const bytes = encodeDer(
      DER.sequence,
      encodeDer(DER.integer, Uint8Array.of(2)),
      encodeDer(DER.boolean, Uint8Array.of(255)),
    )
    expect(decodeDerInside(bytes, DER.sequence).map(({ tag }) => tag)).toEqual([
      DER.integer,
      DER.boolean,
    ])
  })

  test.each([
    ['an indefinite length', [0x30, 0x80, 0, 0]],
    ['a length of four bytes', [0x30, 0x84, 0, 0, 0, 0]],
    ['a length that is cut off', [0x30, 0x82, 1]],
    ['content that is cut off', [0x30, 3, 1, 2]],
    ['a tag of several bytes', [0x1f, 1, 0]],
    ['a lone tag', [0x30]],
  ])('refuses %s', (_what, bytes) => {
    expect(() => decodeDer(Uint8Array.from(bytes))).toThrow(
      expect.objectContaining({ code: 'message_invalid' }),
    )
  })

  test('refuses another tag than the one that is due, and anything after it', () => {
    const bytes = encodeDer(DER.integer, Uint8Array.of(1))
    expect(() => decodeDerInside(bytes, DER.sequence)).toThrow()
    expect(() => decodeDerInside(Buffer.concat([bytes, bytes]), DER.integer)).toThrow()
  })

  test('garbage is refused or split into elements that fill it', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        let elements
        try {
          elements = decodeDer(bytes)
        } catch (thrown) {
          expect(thrown).toMatchObject({ code: 'message_invalid' })
          return
        }
        expect(elements.reduce((sum, element) => sum + element.bytes.length, 0)).toBe(bytes.length)
      }),
    )
  })
})
