/** float32 little-endian bytes, the form of parameters on disk and on the wire, to and from vectors. */
import { ShoalError } from '../errors.ts'

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1

/** The vector's bytes, little-endian. On little-endian machines a view: it shares the vector's memory. */
export function float32Bytes(vector: Float32Array): Uint8Array {
  const bytes = new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength)
  return LITTLE_ENDIAN ? bytes : reverseWords(new Uint8Array(bytes), 4)
}

/**
 * The vector in little-endian bytes. A view that shares their memory when it can be (aligned bytes, little-endian
 * machine), else a copy. Throws `message_invalid` when the bytes are not whole elements.
 */
export function float32Vector(bytes: Uint8Array): Float32Array {
  if (bytes.byteLength % 4 !== 0) {
    throw new ShoalError(
      'message_invalid',
      `${bytes.byteLength} bytes are no whole number of float32 values`,
    )
  }
  const aligned = bytes.byteOffset % 4 === 0
  if (LITTLE_ENDIAN && aligned) {
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
  }
  const copy = new Uint8Array(bytes) // not slice(): a Node Buffer would share its memory
  toHostOrder(copy)
  return new Float32Array(copy.buffer, 0, copy.byteLength / 4)
}

/** Turns little-endian words of `width` bytes into the machine's own order (or back), in place. */
export function toHostOrder(bytes: Uint8Array, width = 4): void {
  if (!LITTLE_ENDIAN) reverseWords(bytes, width)
}

/** Reverses the bytes of each word, in place. */
export function reverseWords<T extends Uint8Array>(bytes: T, width: number): T {
  for (let word = 0; word + width <= bytes.length; word += width) {
    bytes.subarray(word, word + width).reverse()
  }
  return bytes
}
