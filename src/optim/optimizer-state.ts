/**
 * Inner-optimizer state as bytes.
 *
 * Layout, little-endian: u32 magic, u32 version, u32 parameters, u32 steps taken, 32 bytes schema hash. Version 1, for a
 * restart at a round boundary: the first and the second moment as float32. Version 2, for a newcomer: the roots of the
 * second moments in the codec `int8-128`, slice after slice. Anything else is refused with `state_corrupt`.
 */
import { hexToBytes } from '@noble/hashes/utils.js'
import { codecs } from '../codec/codec.ts'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { float32Bytes, float32Vector } from '../tensor/float32-bytes.ts'
import { schemaHash, type Schema } from '../tensor/schema.ts'
import { isFiniteVector, slicesOf } from '../tensor/vector.ts'
import type { AdamWState } from './inner.ts'

/** "AdmW" read as a little-endian u32. */
const MAGIC = 0x576d6441
const WHOLE = 1
const COMPACT = 2
const HEADER_BYTES = 48

const codec = codecs['int8-128']
/** Elements that share a scale, and the largest code. */
const BLOCK = 128
const CODE_MAX = 127

export function encodeOptimizerState(state: AdamWState, schema: Schema): Uint8Array<ArrayBuffer> {
  const vectorBytes = schema.size * 4
  const bytes = new Uint8Array(HEADER_BYTES + 2 * vectorBytes)
  bytes.set(headerOf(WHOLE, state.step, schema))
  bytes.set(float32Bytes(state.firstMoment), HEADER_BYTES)
  bytes.set(float32Bytes(state.secondMoment), HEADER_BYTES + vectorBytes)
  return bytes
}

/**
 * What of a whole state helps a newcomer, in parts that follow one another: how large gradients are. Directions (the first
 * moment) belong to the peer's own data. Throws `state_corrupt` for bytes that are no whole state.
 */
export function* compactState(bytes: Uint8Array, schema: Schema): Generator<Uint8Array> {
  const { version, step } = readHeader(bytes, schema)
  if (version !== WHOLE) throw corrupt('it is not whole')
  yield headerOf(COMPACT, step, schema)
  const start = HEADER_BYTES + 4 * schema.size
  for (const [from, to] of slicesOf(schema.size)) {
    const roots = float32Vector(bytes.subarray(start + 4 * from, start + 4 * to)).map(Math.sqrt)
    for (let block = 0; block < roots.length; block += BLOCK) {
      raiseToLeastCode(roots.subarray(block, block + BLOCK))
    }
    yield codec.encode(roots)
  }
}

/** A root that is rounded to zero would make its parameter's first steps the longest of all. */
function raiseToLeastCode(roots: Float32Array): void {
  let largest = 0
  for (const root of roots) largest = Math.max(largest, root)
  const least = largest / CODE_MAX
  for (let i = 0; i < roots.length; i++) roots[i] = Math.max(roots[i]!, least)
}

/** Reads the bytes into `state`; on any fault `state` is left as it was. Throws `state_corrupt`. */
export function decodeOptimizerState(bytes: Uint8Array, state: AdamWState, schema: Schema): void {
  const { version, step } = readHeader(bytes, schema)
  const { firstMoment, secondMoment } =
    version === WHOLE ? readWhole(bytes, schema) : readCompact(bytes, schema)
  state.step = step
  state.firstMoment.set(firstMoment)
  state.secondMoment.set(secondMoment)
}

type Moments = Pick<AdamWState, 'firstMoment' | 'secondMoment'>

function readWhole(bytes: Uint8Array, schema: Schema): Moments {
  const second = HEADER_BYTES + 4 * schema.size
  const firstMoment = float32Vector(bytes.subarray(HEADER_BYTES, second))
  const secondMoment = float32Vector(bytes.subarray(second))
  if (!isFiniteVector(firstMoment) || !isFiniteVector(secondMoment)) {
    throw corrupt('it holds values that are not finite')
  }
  return { firstMoment, secondMoment }
}

function readCompact(bytes: Uint8Array, schema: Schema): Moments {
  const secondMoment = new Float32Array(schema.size)
  let at = HEADER_BYTES
  for (const [from, to] of slicesOf(schema.size)) {
    const target = secondMoment.subarray(from, to)
    const encoded = bytes.subarray(at, (at += codec.encodedBytes(to - from)))
    try {
      codec.decode(encoded, to - from, target)
    } catch (thrown) {
      throw corrupt(asFault(thrown).message)
    }
    for (let i = 0; i < target.length; i++) target[i] = target[i]! * target[i]!
  }
  if (!isFiniteVector(secondMoment)) throw corrupt('it holds values that are not finite')
  return { firstMoment: new Float32Array(schema.size), secondMoment }
}

function headerOf(version: number, step: number, schema: Schema): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES)
  const header = new DataView(bytes.buffer)
  header.setUint32(0, MAGIC, true)
  header.setUint32(4, version, true)
  header.setUint32(8, schema.size, true)
  header.setUint32(12, step, true)
  bytes.set(hexToBytes(schemaHash(schema)), 16)
  return bytes
}

/** Also checks the length that follows from it. */
function readHeader(bytes: Uint8Array, schema: Schema): { version: number; step: number } {
  if (bytes.length < HEADER_BYTES) throw corrupt(`${bytes.length} bytes instead of a header`)
  const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES)
  if (header.getUint32(0, true) !== MAGIC) throw corrupt('it does not begin like one')
  const version = header.getUint32(4, true)
  if (version !== WHOLE && version !== COMPACT) {
    throw corrupt(`version ${version}, this engine reads ${WHOLE} and ${COMPACT}`)
  }
  const expected = version === WHOLE ? HEADER_BYTES + 8 * schema.size : compactBytes(schema.size)
  if (bytes.length !== expected) throw corrupt(`${bytes.length} bytes instead of ${expected}`)
  const hash = hexToBytes(schemaHash(schema))
  if (
    header.getUint32(8, true) !== schema.size ||
    !hash.every((byte, i) => bytes[16 + i] === byte)
  ) {
    throw corrupt('it belongs to another model')
  }
  return { version, step: header.getUint32(12, true) }
}

/** Length of a compact state of so many parameters. */
export function compactBytes(elements: number): number {
  const whole = Math.floor(elements / LIMITS.sliceElements)
  const rest = elements % LIMITS.sliceElements
  return (
    HEADER_BYTES +
    whole * codec.encodedBytes(LIMITS.sliceElements) +
    (rest > 0 ? codec.encodedBytes(rest) : 0)
  )
}

function corrupt(reason: string): ShoalError {
  return new ShoalError(
    'state_corrupt',
    `the inner-optimizer state is unusable: ${reason}; start again from a checkpoint`,
  )
}
