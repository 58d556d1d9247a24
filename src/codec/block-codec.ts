/**
 * Blockwise symmetric absmax quantisation to 8, 4 or 2 bits (oracle: `quantize_blockwise`, `quantize_2bit`).
 *
 *     scale = fround(absmax / qmax)                 one per block; qmax 127, 7 or 3
 *     code  = clamp(half-even(fround(x / scale)))   -qmax..qmax; 0 when the scale is 0
 *     value = fround(code * scale)
 *
 * 2 bits have no code for 0, which what a top-k keeps is not: the values are -3, -1, 1 and 3 scales, 3 from
 * fround(|x| / scale) >= 2 on; bit 0 of a code tells 3 from 1, bit 1 is set below 0.
 *
 * Form: the scales of all blocks (float32 little-endian), then the codes, the first in the low bits of a byte. 8 and
 * 4 bits are two's complement. What the last byte has left is 0. The codes -128 and -8 do not exist. Scales are
 * float32 because those of late pseudo-gradients (1e-8) are below float16's normal range.
 */
import { ShoalError } from '../errors.ts'
import { toHostOrder } from '../tensor/float32-bytes.ts'
import { notFinite, requireLengths, SCALE_MAX } from './bounds.ts'
import type { Codec } from './codec.ts'

/** Adding and taking away 1.5 * 2^52 rounds a double of small magnitude to the nearest integer, ties to even. */
const ROUNDING = 1.5 * 2 ** 52
const INFINITY_BITS = 0x7f800000

const FORMS = {
  8: { qmax: 127, write: writeBytes, read: readBytes },
  4: { qmax: 7, write: writeNibbles, read: readNibbles },
  2: { qmax: 3, write: writePairs, read: readPairs },
} as const

/** `block` is a multiple of 4, so that no byte is shared by two blocks. */
export function createBlockCodec(bits: 2 | 4 | 8, block: number): Codec {
  const { qmax, write, read } = FORMS[bits]
  const scaleBytes = (elements: number): number => 4 * Math.ceil(elements / block)
  const encodedBytes = (elements: number): number =>
    scaleBytes(elements) + Math.ceil((elements * bits) / 8)
  return {
    id: `int${bits}-${block}`,
    encodedBytes,
    encode(slice) {
      const bytes = new Uint8Array(encodedBytes(slice.length))
      const codesFrom = scaleBytes(slice.length)
      const scales = blockScales(slice, block, qmax)
      write(slice, scales, block, bytes.subarray(codesFrom))
      const head = new Uint8Array(scales.buffer)
      toHostOrder(head)
      bytes.set(head)
      return bytes
    },
    decode(bytes, elements, target = new Float32Array(elements)) {
      requireLengths(bytes, encodedBytes(elements), target, elements)
      const codesFrom = scaleBytes(elements)
      const head = new Uint8Array(bytes.subarray(0, codesFrom))
      toHostOrder(head)
      const scales = new Float32Array(head.buffer)
      for (let i = 0; i < scales.length; i++) {
        // Written so that NaN fails too.
        if (!(scales[i]! >= 0 && scales[i]! <= SCALE_MAX)) {
          throw new ShoalError(
            'message_invalid',
            `a chunk holds the scale ${scales[i]} at block ${i}`,
          )
        }
      }
      if (!read(bytes.subarray(codesFrom), scales, block, target)) {
        throw new ShoalError('message_invalid', `a chunk holds a code that int${bits} lacks`)
      }
      return target
    },
  }
}

function blockScales(slice: Float32Array, block: number, qmax: number): Float32Array<ArrayBuffer> {
  const scales = new Float32Array(Math.ceil(slice.length / block))
  // Without their sign, floats order like their bits, and whatever is not finite comes after all that is.
  const words = new Uint32Array(slice.buffer, slice.byteOffset, slice.length)
  const absmaxBits = new Uint32Array(1)
  const absmax = new Float32Array(absmaxBits.buffer)
  for (let b = 0; b < scales.length; b++) {
    const to = Math.min((b + 1) * block, slice.length)
    let largest = 0
    for (let i = b * block; i < to; i++) {
      const magnitude = words[i]! & 0x7fffffff
      if (magnitude > largest) largest = magnitude
    }
    if (largest >= INFINITY_BITS) {
      throw notFinite(slice.find((value) => !Number.isFinite(value)))
    }
    absmaxBits[0] = largest
    scales[b] = absmax[0]! / qmax
  }
  return scales
}

function writeBytes(
  slice: Float32Array,
  scales: Float32Array,
  block: number,
  codes: Uint8Array,
): void {
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    if (scale === 0) continue
    const to = Math.min((b + 1) * block, slice.length)
    for (let i = b * block; i < to; i++) {
      const code = Math.fround(slice[i]! / scale) + ROUNDING - ROUNDING
      // A subnormal scale is rounded so coarsely that its block's absmax may exceed qmax scales.
      codes[i] = code > 127 ? 127 : code < -127 ? -127 : code
    }
  }
}

function writeNibbles(
  slice: Float32Array,
  scales: Float32Array,
  block: number,
  codes: Uint8Array,
): void {
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    if (scale === 0) continue
    const to = Math.min((b + 1) * block, slice.length)
    for (let i = b * block; i < to; i += 2) {
      const low = Math.fround(slice[i]! / scale) + ROUNDING - ROUNDING
      const high = i + 1 < to ? Math.fround(slice[i + 1]! / scale) + ROUNDING - ROUNDING : 0
      codes[i >> 1] =
        ((low > 7 ? 7 : low < -7 ? -7 : low) & 15) |
        (((high > 7 ? 7 : high < -7 ? -7 : high) & 15) << 4)
    }
  }
}

function writePairs(
  slice: Float32Array,
  scales: Float32Array,
  block: number,
  codes: Uint8Array,
): void {
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    if (scale === 0) continue
    const to = Math.min((b + 1) * block, slice.length)
    for (let i = b * block; i < to; i++) {
      const value = slice[i]!
      const sign = value < 0 ? 2 : 0
      const isLarge = Math.fround(Math.abs(value) / scale) >= 2 ? 1 : 0
      codes[i >> 2]! |= (sign | isLarge) << (2 * (i & 3))
    }
  }
}

/** Returns whether all codes exist. */
function readBytes(
  codes: Uint8Array,
  scales: Float32Array,
  block: number,
  target: Float32Array,
): boolean {
  let lowest = 0
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    const to = Math.min((b + 1) * block, codes.length)
    for (let i = b * block; i < to; i++) {
      const code = (codes[i]! << 24) >> 24
      if (code < lowest) lowest = code
      target[i] = code * scale
    }
  }
  return lowest >= -127
}

function readNibbles(
  codes: Uint8Array,
  scales: Float32Array,
  block: number,
  target: Float32Array,
): boolean {
  const elements = target.length
  let lowest = 0
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    const to = Math.min((b + 1) * block, elements)
    for (let i = b * block; i < to; i += 2) {
      const byte = codes[i >> 1]!
      const low = (byte << 28) >> 28
      const high = (byte << 24) >> 28
      if (low < lowest) lowest = low
      if (high < lowest) lowest = high
      target[i] = low * scale
      if (i + 1 < to) target[i + 1] = high * scale
    }
  }
  const padding = elements % 2 === 1 ? codes[codes.length - 1]! >> 4 : 0
  return lowest >= -7 && padding === 0
}

const PAIR_VALUES = [1, 3, -1, -3] as const

function readPairs(
  codes: Uint8Array,
  scales: Float32Array,
  block: number,
  target: Float32Array,
): boolean {
  const elements = target.length
  for (let b = 0; b < scales.length; b++) {
    const scale = scales[b]!
    const to = Math.min((b + 1) * block, elements)
    for (let i = b * block; i < to; i++) {
      target[i] = PAIR_VALUES[(codes[i >> 2]! >> (2 * (i & 3))) & 3]! * scale
    }
  }
  return elements % 4 === 0 || codes[codes.length - 1]! >> (2 * (elements % 4)) === 0
}
