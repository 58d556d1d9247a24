/**
 * The `keep` elements of largest magnitude of each chunk, of equal ones the first; the others decode to 0 (oracle:
 * `chunk_topk_quant_ef_round`). Of a last chunk with fewer elements all are kept.
 *
 * Form: the positions of all chunks (`positions.ts`), then all kept values, ascending by position, as a block codec
 * with blocks of `keep` or the fp32 codec writes them: one scale per chunk.
 *
 * What is not sent is lost unless error feedback keeps it (`optim/error-feedback.ts`).
 */
import { ShoalError } from '../errors.ts'
import { createBlockCodec } from './block-codec.ts'
import { requireLengths } from './bounds.ts'
import type { Codec } from './codec.ts'
import { createFloatCodec } from './float-codec.ts'
import { createPositions, keptElements } from './positions.ts'

export interface TopKOptions {
  id: string
  /** A power of two from 8 to 65536. */
  chunk: number
  /** A multiple of 4. */
  keep: number
  /** Bits of a value: 32 are fp32, less are codes with one scale per chunk. */
  bits: 2 | 4 | 8 | 32
}

export function createTopKCodec({ id, chunk, keep, bits }: TopKOptions): Codec {
  const positions = createPositions(chunk, keep)
  const values = bits === 32 ? createFloatCodec(32) : createBlockCodec(bits, keep)
  const encodedBytes = (elements: number): number =>
    positions.bytes(elements) + values.encodedBytes(keptElements(elements, chunk, keep))
  return {
    id,
    encodedBytes,
    encode(slice) {
      const places = largest(slice, chunk, keep)
      // What is not finite is larger than all that is, so it is among the kept, and `values` refuses it.
      const kept = new Float32Array(places.length)
      for (let j = 0; j < kept.length; j++) kept[j] = slice[places[j]!]!
      const bytes = new Uint8Array(encodedBytes(slice.length))
      const valuesFrom = positions.bytes(slice.length)
      positions.write(places, bytes)
      bytes.set(values.encode(kept), valuesFrom)
      return bytes
    },
    decode(bytes, elements, target = new Float32Array(elements)) {
      requireLengths(bytes, encodedBytes(elements), target, elements)
      const valuesFrom = positions.bytes(elements)
      const places = new Uint32Array(keptElements(elements, chunk, keep))
      if (!positions.read(bytes.subarray(0, valuesFrom), elements, places)) {
        throw new ShoalError('message_invalid', 'a chunk holds positions that no top-k has')
      }
      const kept = values.decode(bytes.subarray(valuesFrom), places.length)
      target.fill(0)
      for (let j = 0; j < kept.length; j++) target[places[j]!] = kept[j]!
      return target
    },
  }
}

/** Places of the kept elements in the slice, ascending. */
function largest(slice: Float32Array, chunk: number, keep: number): Uint32Array {
  // Without their sign, floats order like their bits.
  const words = new Uint32Array(slice.buffer, slice.byteOffset, slice.length)
  const places = new Uint32Array(keptElements(slice.length, chunk, keep))
  const counts = new Uint32Array(2048)
  let found = 0
  for (let from = 0; from < words.length; from += chunk) {
    const part = words.subarray(from, from + chunk)
    const { threshold, ties } = smallestKept(part, Math.min(keep, part.length), counts)
    let tiesLeft = ties
    for (let i = 0; i < part.length; i++) {
      const magnitude = part[i]! & MAGNITUDE
      if (magnitude < threshold || (magnitude === threshold && tiesLeft-- <= 0)) continue
      places[found++] = from + i
    }
  }
  return places
}

const MAGNITUDE = 0x7fffffff

/** Shift and width of the digits, from the highest, that sort 31 bits; the first tells an eighth of an octave. */
const DIGITS = [
  [20, 11],
  [10, 10],
  [0, 10],
] as const

/**
 * The magnitude of the smallest of the `keep` largest words, and how many of that magnitude are among them: a radix
 * selection, whose time does not depend on the words.
 */
function smallestKept(
  words: Uint32Array,
  keep: number,
  counts: Uint32Array,
): { threshold: number; ties: number } {
  let threshold = 0
  let known = 0
  let ties = keep
  for (const [shift, width] of DIGITS) {
    const mask = 2 ** width - 1
    counts.fill(0)
    for (let i = 0; i < words.length; i++) {
      const magnitude = words[i]! & MAGNITUDE
      if ((magnitude & known) === threshold) counts[(magnitude >>> shift) & mask]!++
    }
    let digit = mask
    while (counts[digit]! < ties) ties -= counts[digit--]!
    threshold |= digit << shift
    known |= mask << shift
  }
  return { threshold, ties }
}
