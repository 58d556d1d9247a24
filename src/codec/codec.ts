/**
 * Codecs: named encodings of a slice of a vector, the body of a contribution's chunk.
 *
 * A slice is `LIMITS.sliceElements` long (a multiple of every block) or the vector's last; each is encoded by itself, so
 * that it can be sent, verified and decoded by itself. The forms are stable: a change needs a new id.
 */
import { createBlockCodec } from './block-codec.ts'
import { createFloatCodec } from './float-codec.ts'

export interface Codec {
  readonly id: string
  /** Exact length of the encoding of so many elements. */
  encodedBytes(elements: number): number
  /** Throws `engine_failed` when an element is not finite (or, fp16, too large for the form): training diverged. */
  encode(slice: Float32Array): Uint8Array<ArrayBuffer>
  /**
   * Decodes hostile bytes into `target` (fresh memory by default): the same values, bit by bit, on every machine.
   * Throws `message_invalid` on a wrong length, and on scales, codes or values that no healthy peer sends (see
   * `bounds.ts`); `target` is then partly written.
   */
  decode(bytes: Uint8Array, elements: number, target?: Float32Array): Float32Array
}

/** fp32 4, fp16 2, int8-128 1.03125 and int4-64 0.5625 bytes per element. */
export const CODEC_IDS = ['fp32', 'fp16', 'int8-128', 'int4-64'] as const
export type CodecId = (typeof CODEC_IDS)[number]

export const codecs: Readonly<Record<CodecId, Codec>> = {
  fp32: createFloatCodec(32),
  fp16: createFloatCodec(16),
  'int8-128': createBlockCodec(8, 128),
  'int4-64': createBlockCodec(4, 64),
}
