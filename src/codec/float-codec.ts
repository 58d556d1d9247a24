/** Elements as IEEE floats, little-endian, in order. */
import { ShoalError } from '../errors.ts'
import { toHostOrder } from '../tensor/float32-bytes.ts'
import { MAGNITUDE_MAX, notFinite, requireLengths } from './bounds.ts'
import type { Codec } from './codec.ts'
import { fromHalves, isFiniteHalf, toHalves } from './float16.ts'

export function createFloatCodec(bits: 16 | 32): Codec {
  const width = bits / 8
  return {
    id: `fp${bits}`,
    encodedBytes: (elements) => width * elements,
    encode(slice) {
      const bytes = new Uint8Array((bits === 16 ? finiteHalves(slice) : finiteCopy(slice)).buffer)
      toHostOrder(bytes, width)
      return bytes
    },
    decode(bytes, elements, target = new Float32Array(elements)) {
      requireLengths(bytes, width * elements, target, elements)
      const copy = new Uint8Array(bytes)
      toHostOrder(copy, width)
      if (bits === 16) fromHalves(new Uint16Array(copy.buffer), target)
      else target.set(new Float32Array(copy.buffer))
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

function finiteCopy(slice: Float32Array): Float32Array<ArrayBuffer> {
  // x - x is 0 for every number but NaN and the infinities: no branch in the loop.
  let sum = 0
  for (let i = 0; i < slice.length; i++) sum += slice[i]! - slice[i]!
  if (sum !== 0) throw notFinite(slice.find((value) => !Number.isFinite(value)))
  return new Float32Array(slice)
}

function finiteHalves(slice: Float32Array): Uint16Array<ArrayBuffer> {
  const halves = toHalves(slice)
  for (let i = 0; i < halves.length; i++) {
    if (!isFiniteHalf(halves[i]!)) throw notFinite(slice[i])
  }
  return halves
}
