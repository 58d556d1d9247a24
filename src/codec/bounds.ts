/** What a decoder tolerates, whatever the codec. */
import { ShoalError } from '../errors.ts'

/**
 * Largest scale of a block. Weights and pseudo-gradients of a healthy model stay below 1e2, where scales stay below
 * 14: 1e4 leaves three orders of magnitude and keeps sums over a group far from float32's infinity.
 */
export const SCALE_MAX = 1e4

/** Largest magnitude of a float element: the same bound as the widest block code, 127 times the largest scale. */
export const MAGNITUDE_MAX = 127 * SCALE_MAX

export function requireLengths(
  bytes: Uint8Array,
  expectedBytes: number,
  target: Float32Array,
  elements: number,
): void {
  if (bytes.length !== expectedBytes) {
    throw new ShoalError(
      'message_invalid',
      `a chunk has ${bytes.length} bytes, not ${expectedBytes}`,
    )
  }
  if (target.length !== elements) {
    throw new ShoalError('internal', `${target.length} elements cannot take ${elements}`)
  }
}

export function notFinite(value: number | undefined): ShoalError {
  return new ShoalError(
    'engine_failed',
    `training diverged: ${value} cannot be encoded; lower the learning rate or use a wider codec`,
  )
}
