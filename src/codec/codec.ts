/**
 * Codecs: named encodings of a slice of a vector, the body of a contribution's chunk.
 *
 * A slice is `LIMITS.sliceElements` long (a multiple of every block) or the vector's last; each is encoded by itself, so
 * that it can be sent, verified and decoded by itself. The forms are stable: a change needs a new id.
 */
import { createBlockCodec } from './block-codec.ts'
import { createFloatCodec } from './float-codec.ts'
import { createTopKCodec } from './top-k-codec.ts'

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
export const DENSE_CODEC_IDS = ['fp32', 'fp16', 'int8-128', 'int4-64'] as const

/**
 * Of each 4096 elements the largest: topk-1024-int4 0.251, topk-256-int8 0.157, topk-64-fp32 0.086 and sparseloco
 * (64 in 2 bits, arXiv 2508.15706) 0.0283 bytes per element. For pseudo-gradients under error feedback only.
 */
export const SPARSE_CODEC_IDS = [
  'topk-1024-int4',
  'topk-256-int8',
  'topk-64-fp32',
  'sparseloco',
] as const

export const CODEC_IDS = [...DENSE_CODEC_IDS, ...SPARSE_CODEC_IDS] as const
export type CodecId = (typeof CODEC_IDS)[number]

export function isSparse(id: CodecId): id is (typeof SPARSE_CODEC_IDS)[number] {
  return SPARSE_CODEC_IDS.some((sparse) => sparse === id)
}

const CHUNK = 4096

export const codecs: Readonly<Record<CodecId, Codec>> = {
  fp32: createFloatCodec(32),
  fp16: createFloatCodec(16),
  'int8-128': createBlockCodec(8, 128),
  'int4-64': createBlockCodec(4, 64),
  'topk-1024-int4': createTopKCodec({ id: 'topk-1024-int4', chunk: CHUNK, keep: 1024, bits: 4 }),
  'topk-256-int8': createTopKCodec({ id: 'topk-256-int8', chunk: CHUNK, keep: 256, bits: 8 }),
  'topk-64-fp32': createTopKCodec({ id: 'topk-64-fp32', chunk: CHUNK, keep: 64, bits: 32 }),
  sparseloco: createTopKCodec({ id: 'sparseloco', chunk: CHUNK, keep: 64, bits: 2 }),
}
