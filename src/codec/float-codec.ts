/** Elements as IEEE floats, little-endian, in order. */
import { ShoalError } from '../errors.ts'
import { toHostOrder } from '../tensor/float32-bytes.ts'
import { MAGNITUDE_MAX, notFinite, requireLengths } from './bounds.ts'
import type { Codec } from './codec.ts'

export function createFloatCodec(bits: 16 | 32): Codec {
  const width = bits / 8
  return {
    id: `fp${bits}`,
    encodedBytes: (elements) => width * elements,
    encode(slice) {
      const values = bits === 16 ? new Float16Array(slice) : new Float32Array(slice)
      // x - x is 0 for every number but NaN and the infinities: no branch in the loop.
      let sum = 0
      for (let i = 0; i < values.length; i++) sum += values[i]! - values[i]!
      if (sum !== 0) {
        throw notFinite(slice[values.findIndex((value) => !Number.isFinite(value))])
      }
      const bytes = new Uint8Array(values.buffer)
      toHostOrder(bytes, width)
      return bytes
    },
    decode(bytes, elements, target = new Float32Array(elements)) {
      requireLengths(bytes, width * elements, target, elements)
      const copy = new Uint8Array(bytes)
      toHostOrder(copy, width)
      target.set(bits === 16 ? new Float16Array(copy.buffer) : new Float32Array(copy.buffer))
      for (let i = 0; i < elements; i++) {
        // Written so that NaN fails too.
        if (!(Math.abs(target[i]!) <= MAGNITUDE_MAX)) {
          throw new ShoalError('message_invalid', `a chunk holds ${target[i]} at element ${i}`)
        }
      }
      return target
    },
  }
}
