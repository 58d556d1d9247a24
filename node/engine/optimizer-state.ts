/**
 * Inner-optimizer state as bytes, for a restart at a round boundary.
 *
 * Layout, little-endian: u32 magic, u32 version, u32 parameters, u32 steps taken, 32 bytes schema hash, then the first
 * and the second moment as float32. Anything else is refused with `state_corrupt`.
 */
import { hexToBytes } from '@noble/hashes/utils.js'
import { ShoalError } from '../../src/errors.ts'
import type { AdamWState } from '../../src/optim/inner.ts'
import { float32Bytes, float32Vector } from '../../src/tensor/float32-bytes.ts'
import { schemaHash, type Schema } from '../../src/tensor/schema.ts'
import { isFiniteVector } from '../../src/tensor/vector.ts'

/** "AdmW" read as a little-endian u32. */
const MAGIC = 0x576d6441
const VERSION = 1
const HEADER_BYTES = 48

export function encodeOptimizerState(state: AdamWState, schema: Schema): Uint8Array<ArrayBuffer> {
  const vectorBytes = schema.size * 4
  const bytes = new Uint8Array(HEADER_BYTES + 2 * vectorBytes)
  const header = new DataView(bytes.buffer)
  header.setUint32(0, MAGIC, true)
  header.setUint32(4, VERSION, true)
  header.setUint32(8, schema.size, true)
  header.setUint32(12, state.step, true)
  bytes.set(hexToBytes(schemaHash(schema)), 16)
  bytes.set(float32Bytes(state.firstMoment), HEADER_BYTES)
  bytes.set(float32Bytes(state.secondMoment), HEADER_BYTES + vectorBytes)
  return bytes
}

/** Reads the bytes into `state`; on any fault `state` is left as it was. Throws `state_corrupt`. */
export function decodeOptimizerState(bytes: Uint8Array, state: AdamWState, schema: Schema): void {
  const vectorBytes = schema.size * 4
  if (bytes.length !== HEADER_BYTES + 2 * vectorBytes) {
    throw corrupt(`${bytes.length} bytes instead of ${HEADER_BYTES + 2 * vectorBytes}`)
  }
  const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES)
  if (header.getUint32(0, true) !== MAGIC) throw corrupt('it does not begin like one')
  const version = header.getUint32(4, true)
  if (version !== VERSION) throw corrupt(`version ${version}, this engine reads ${VERSION}`)
  const hash = hexToBytes(schemaHash(schema))
  if (
    header.getUint32(8, true) !== schema.size ||
    !hash.every((byte, i) => bytes[16 + i] === byte)
  ) {
    throw corrupt('it belongs to another model')
  }
  const second = HEADER_BYTES + vectorBytes
  const firstMoment = float32Vector(bytes.subarray(HEADER_BYTES, second))
  const secondMoment = float32Vector(bytes.subarray(second))
  if (!isFiniteVector(firstMoment) || !isFiniteVector(secondMoment)) {
    throw corrupt('it holds values that are not finite')
  }
  state.step = header.getUint32(12, true)
  state.firstMoment.set(firstMoment)
  state.secondMoment.set(secondMoment)
}

function corrupt(reason: string): ShoalError {
  return new ShoalError(
    'state_corrupt',
    `the inner-optimizer state is unusable: ${reason}; start again from a checkpoint`,
  )
}
