/**
 * The signed envelope: the only form in which shared state travels and is kept.
 *
 * On the wire it is the dag-cbor tuple [body, signature], where body is canonical dag-cbor of `bodySchema`
 * and the Ed25519 signature covers `DOMAIN` and the body. What follows from it:
 * - the run id is inside, so no envelope can be replayed into another run;
 * - `(author, document, epoch, sequence)` names an envelope, so two bodies with one name, or a successor that
 *   names another predecessor, prove that the author signed two histories (`conflict`);
 * - the hash is that of the body: another signature over the same body is the same envelope.
 * The age travels beside the envelope, because relays keep it growing.
 */
import { decode, encode } from '@ipld/dag-cbor'
import { sha256 } from '@noble/hashes/sha2.js'
import { bytesToHex, concatBytes, hexToBytes, utf8ToBytes } from '@noble/hashes/utils.js'
import { z } from 'zod'
import { LIMITS } from '../limits.ts'
import type { Identity } from '../net/identity.ts'
import { verifySignature } from '../net/identity.ts'
import { decodeCbor } from '../store/content.ts'

export const DOCUMENTS = ['record', 'board'] as const
export type DocumentName = (typeof DOCUMENTS)[number]

const VERSION = 1
const DOMAIN = utf8ToBytes('shoal state envelope 1\n')

export const bytesSchema = z.custom<Uint8Array>((value) => value instanceof Uint8Array)
export const hashSchema = bytesSchema.refine((bytes) => bytes.length === 32)
/** An Ed25519 peer id in base58: 38 bytes with a fixed head, and no second spelling of the same key. */
export const authorSchema = z.string().regex(/^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$/)
export const epochSchema = z.number().int().min(1)
export const sequenceSchema = z.number().int().min(1)

/** What every version of the body has. */
export const versionedSchema = z.looseObject({ version: z.number().int() })

const bodySchema = z
  .strictObject({
    version: z.literal(VERSION),
    run: z.string().max(128),
    author: authorSchema,
    document: z.enum(DOCUMENTS),
    /** One life of one writer; a later life has a higher one. */
    epoch: epochSchema,
    sequence: sequenceSchema,
    /** Hash of the envelope with the number before, null for the first of an epoch. */
    previous: hashSchema.nullable(),
    kind: z.enum(['snapshot', 'update']),
    /** Yjs update, v1 encoding. */
    update: bytesSchema,
  })
  .refine((body) => (body.sequence === 1) === (body.previous === null))
  .refine((body) => body.sequence > 1 || body.kind === 'snapshot')

const wireSchema = z.tuple([bytesSchema, bytesSchema.refine((bytes) => bytes.length === 64)])

export interface EnvelopeContent {
  run: string
  author: string
  document: DocumentName
  epoch: number
  sequence: number
  /** Hash in hex. */
  previous: string | null
  kind: 'snapshot' | 'update'
  update: Uint8Array
}

export interface Envelope extends Readonly<EnvelopeContent> {
  /** sha-256 of the body in hex. */
  readonly hash: string
  /** As on the wire. */
  readonly bytes: Uint8Array
}

export function envelopeLimit(document: DocumentName): number {
  return document === 'record' ? LIMITS.recordEnvelopeBytes : LIMITS.envelopeBytes
}

/** Signs `content`. The caller holds the result against `envelopeLimit`. */
export async function signEnvelope(
  identity: Identity,
  content: EnvelopeContent,
): Promise<Envelope> {
  const previous = content.previous === null ? null : hexToBytes(content.previous)
  const body = encode({ version: VERSION, ...content, previous })
  const signature = await identity.sign(concatBytes(DOMAIN, body))
  return { ...content, hash: bytesToHex(sha256(body)), bytes: encode([body, signature]) }
}

/** Everything but the signature is checked; a string names why the bytes are no envelope. */
export function parseEnvelope(
  bytes: Uint8Array,
): Envelope | 'oversized' | 'malformed' | 'version_unsupported' {
  if (bytes.length > LIMITS.envelopeBytes) return 'oversized'
  try {
    const [bodyBytes] = wireSchema.parse(decodeCbor(bytes, LIMITS.envelopeBytes))
    const decoded = decodeCbor(bodyBytes, LIMITS.envelopeBytes)
    const versioned = versionedSchema.safeParse(decoded)
    if (versioned.success && versioned.data.version !== VERSION) return 'version_unsupported'
    const { version: _version, previous, ...body } = bodySchema.parse(decoded)
    if (bytes.length > envelopeLimit(body.document)) return 'oversized'
    return {
      ...body,
      previous: previous === null ? null : bytesToHex(previous),
      hash: bytesToHex(sha256(bodyBytes)),
      bytes,
    }
  } catch {
    // zod, cborg and a call stack exhausted by nesting: all mean the same.
    return 'malformed'
  }
}

export async function verifyEnvelope(envelope: Envelope): Promise<boolean> {
  const [body, signature] = wireSchema.parse(decode(envelope.bytes))
  return verifySignature(envelope.author, concatBytes(DOMAIN, body), signature)
}

/** Whether the two envelopes, both truly signed, cannot be by an author with one history. */
export function conflict(a: Envelope, b: Envelope): boolean {
  if (a.run !== b.run || a.author !== b.author || a.document !== b.document) return false
  if (a.epoch !== b.epoch) return false
  if (a.sequence === b.sequence) return a.hash !== b.hash
  const [first, second] = a.sequence < b.sequence ? [a, b] : [b, a]
  return second.sequence === first.sequence + 1 && second.previous !== first.hash
}
