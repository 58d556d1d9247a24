/** DER, the encoding of X.509 certificates: as much of it as the certificates of libp2p peers need. */
import { ShoalError } from '../../src/errors.ts'

export const DER = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  objectIdentifier: 0x06,
  utf8String: 0x0c,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
  /** The version of a certificate. */
  context0: 0xa0,
  /** The extensions of a certificate. */
  context3: 0xa3,
} as const

export interface DerElement {
  tag: number
  content: Uint8Array
  /** Tag and length included. */
  bytes: Uint8Array
}

/** An element with these parts as its content. */
export function encodeDer(tag: number, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const digits: number[] = []
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) digits.unshift(rest % 256)
  const header = length < 128 ? [tag, length] : [tag, 0x80 + digits.length, ...digits]
  return Buffer.concat([Uint8Array.from(header), ...parts])
}

/** `1.2.840.10045.4.3.2` as an element. */
export function encodeObjectIdentifier(dotted: string): Uint8Array {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number)
  const bytes = [40 * first + second, ...rest].flatMap((arc) => {
    const groups = [arc % 128]
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) {
      groups.unshift(128 + (left % 128))
    }
    return groups
  })
  return encodeDer(DER.objectIdentifier, Uint8Array.from(bytes))
}

/** The elements one after the other in `bytes`, which they fill. Throws `message_invalid`. */
export function decodeDer(bytes: Uint8Array): DerElement[] {
  const elements: DerElement[] = []
  for (let offset = 0; offset < bytes.length;) {
    const element = readElement(bytes, offset)
    elements.push(element)
    offset += element.bytes.length
  }
  return elements
}

/** The elements inside the only element of `bytes`. Throws `message_invalid`, also when its tag is another. */
export function decodeDerInside(bytes: Uint8Array, tag: number): DerElement[] {
  const [element, ...more] = decodeDer(bytes)
  if (element?.tag !== tag || more.length > 0) throw malformed()
  return decodeDer(element.content)
}

function readElement(bytes: Uint8Array, offset: number): DerElement {
  const tag = bytes[offset]
  const first = bytes[offset + 1]
  // Tags above 30 and indefinite lengths do not occur in certificates.
  if (tag === undefined || first === undefined || (tag & 0x1f) === 0x1f) throw malformed()
  const digits = first < 128 ? 0 : first - 128
  if (first === 128 || digits > 3) throw malformed()
  let length = first < 128 ? first : 0
  for (let index = 0; index < digits; index++) {
    length = 256 * length + (bytes[offset + 2 + index] ?? Number.NaN)
  }
  const start = offset + 2 + digits
  // A length that was cut off is not a number, and fails here too.
  if (!(start + length <= bytes.length)) throw malformed()
  return {
    tag,
    content: bytes.subarray(start, start + length),
    bytes: bytes.subarray(offset, start + length),
  }
}

function malformed(): ShoalError {
  return new ShoalError('message_invalid', 'malformed DER')
}
