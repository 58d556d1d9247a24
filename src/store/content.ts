/** Content addressing: CIDs by sha-256 and canonical dag-cbor. */
import { decode, encode } from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { messageOf, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'

/** Multicodec codes of the two kinds of block that exist here. */
const CODECS = { raw: 0x55, 'dag-cbor': 0x71 } as const
const CODEC_CODES: ReadonlySet<number> = new Set(Object.values(CODECS))

export type BlockCodec = keyof typeof CODECS

/** CIDv1 of `bytes` with sha-256. Tensors and text are `raw`; manifests are `dag-cbor`. */
export async function cidOf(bytes: Uint8Array, codec: BlockCodec): Promise<CID> {
  return CID.createV1(CODECS[codec], await sha256.digest(bytes))
}

/** Whether `bytes` are what `cid` names. */
export async function matchesCid(bytes: Uint8Array, cid: CID): Promise<boolean> {
  const actual = (await sha256.digest(bytes)).digest
  const expected = cid.multihash.digest
  return (
    cid.multihash.code === sha256.code &&
    expected.length === actual.length &&
    expected.every((byte, index) => byte === actual[index])
  )
}

/** Reads a CID written as text. Throws `message_invalid` unless it is a CIDv1 of a raw or dag-cbor block by sha-256. */
export function parseCid(text: string): CID {
  let cid: CID
  try {
    cid = CID.parse(text)
  } catch (cause) {
    throw new ShoalError('message_invalid', `"${text.slice(0, 128)}" is not a CID`, { cause })
  }
  return ownKindOf(cid)
}

/** Reads a CID's bytes; same faults as `parseCid`. */
export function decodeCid(bytes: Uint8Array): CID {
  let cid: CID
  try {
    cid = CID.decode(bytes)
  } catch (cause) {
    throw new ShoalError('message_invalid', 'the bytes are not a CID', { cause })
  }
  return ownKindOf(cid)
}

function ownKindOf(cid: CID): CID {
  const { code, digest } = cid.multihash
  if (
    cid.version !== 1 ||
    !CODEC_CODES.has(cid.code) ||
    code !== sha256.code ||
    digest.length !== 32
  ) {
    throw new ShoalError(
      'message_invalid',
      `CID ${cid.toString()} does not name a raw or dag-cbor block by sha-256`,
    )
  }
  return cid
}

/** Canonical dag-cbor. Throws `limit_exceeded` above `maxBytes`, `internal` for what dag-cbor cannot say (undefined, NaN). */
export function encodeCbor(value: unknown, maxBytes: number = LIMITS.rpcMessageBytes): Uint8Array {
  let bytes: Uint8Array
  try {
    bytes = encode(value)
  } catch (cause) {
    throw new ShoalError('internal', `cannot encode as dag-cbor: ${messageOf(cause)}`, { cause })
  }
  if (bytes.length > maxBytes) {
    throw new ShoalError('limit_exceeded', `a record of ${bytes.length} bytes exceeds ${maxBytes}`)
  }
  return bytes
}

/**
 * Decodes canonical dag-cbor of at most `maxBytes`; the value is still to be parsed by a schema. Throws
 * `message_invalid` for anything else, also for a second spelling of the same value (keys out of order, long
 * integers): one value has one CID.
 */
export function decodeCbor(bytes: Uint8Array, maxBytes: number): unknown {
  if (bytes.length > maxBytes) {
    throw new ShoalError('message_invalid', `a record of ${bytes.length} bytes exceeds ${maxBytes}`)
  }
  try {
    const value: unknown = decode(bytes)
    const again = encode(value)
    if (again.length !== bytes.length || again.some((byte, index) => byte !== bytes[index])) {
      throw new Error('not canonical')
    }
    return value
  } catch (cause) {
    throw new ShoalError('message_invalid', `not valid dag-cbor: ${messageOf(cause)}`, { cause })
  }
}
