/**
 * The two messages of shared state, dag-cbor over peer RPC.
 *
 * `state/sync`  heads of the caller -> what the caller lacks, and the heads of what the callee lacks (`wanted`)
 * `state/push`  envelopes the callee may not have yet -> nothing
 * Either is answered with `run_unknown` by a node that does not take part in the run.
 */
import { decode, encode } from '@ipld/dag-cbor'
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import {
  authorSchema,
  bytesSchema,
  DOCUMENTS,
  epochSchema,
  hashSchema,
  sequenceSchema,
  versionedSchema,
} from './envelope.ts'

export const PUSH_METHOD = 'state/push'
export const SYNC_METHOD = 'state/sync'

const VERSION = 1

/** Envelopes of one chain in order, with the milliseconds since the last of them was made. */
const partSchema = z.strictObject({
  ageMs: z.number().int().min(0),
  envelopes: z.array(bytesSchema).min(1).max(LIMITS.envelopesPerMessage),
})
export type WirePart = z.infer<typeof partSchema>

const partsSchema = z
  .array(partSchema)
  .refine(
    (parts) =>
      parts.reduce((sum, part) => sum + part.envelopes.length, 0) <= LIMITS.envelopesPerMessage,
  )

/** Two envelopes that prove equivocation. */
const proofsSchema = z.array(z.tuple([bytesSchema, bytesSchema])).max(LIMITS.proofsPerMessage)
export type WireProof = [Uint8Array, Uint8Array]

/** Newest envelope of a chain that a node has, or null when it has none. */
const headSchema = z.strictObject({
  author: authorSchema,
  document: z.enum(DOCUMENTS),
  last: z
    .strictObject({ epoch: epochSchema, sequence: sequenceSchema, hash: hashSchema })
    .nullable(),
})
export type WireHead = z.infer<typeof headSchema>
const headsSchema = z.array(headSchema).max(LIMITS.runPeers + LIMITS.admins)

const runSchema = z.string().max(128)

const pushSchema = z.strictObject({
  version: z.literal(VERSION),
  run: runSchema,
  parts: partsSchema,
  proofs: proofsSchema,
})
export type Push = Omit<z.infer<typeof pushSchema>, 'version'>

const syncRequestSchema = z.strictObject({
  version: z.literal(VERSION),
  run: runSchema,
  heads: headsSchema,
  /** Authors whose equivocation the caller can prove. */
  proven: z.array(authorSchema).max(LIMITS.equivocationProofs),
})
export type SyncRequest = Omit<z.infer<typeof syncRequestSchema>, 'version'>

const syncReplySchema = z.strictObject({
  version: z.literal(VERSION),
  parts: partsSchema,
  proofs: proofsSchema,
  /** Own heads of what the callee lacks. */
  wanted: headsSchema.max(LIMITS.envelopesPerMessage),
  /** Whether the caller should ask again for the rest. */
  more: z.boolean(),
})
export type SyncReply = Omit<z.infer<typeof syncReplySchema>, 'version'>

export const encodePush = (message: Push): Uint8Array => encode({ version: VERSION, ...message })
export const encodeSyncRequest = (message: SyncRequest): Uint8Array =>
  encode({ version: VERSION, ...message })
export const encodeSyncReply = (message: SyncReply): Uint8Array =>
  encode({ version: VERSION, ...message })

export const decodePush = (bytes: Uint8Array): Push => parse(pushSchema, bytes, PUSH_METHOD)
export const decodeSyncRequest = (bytes: Uint8Array): SyncRequest =>
  parse(syncRequestSchema, bytes, SYNC_METHOD)
export const decodeSyncReply = (bytes: Uint8Array): SyncReply =>
  parse(syncReplySchema, bytes, SYNC_METHOD)

function parse<T>(schema: z.ZodType<T>, bytes: Uint8Array, method: string): T {
  if (bytes.length > LIMITS.rpcMessageBytes) {
    throw new ShoalError('message_invalid', `a ${method} message of ${bytes.length} bytes`)
  }
  let message: unknown
  try {
    message = decode(bytes)
    return schema.parse(message)
  } catch (cause) {
    const versioned = versionedSchema.safeParse(message)
    if (versioned.success && versioned.data.version !== VERSION) {
      throw new ShoalError(
        'version_unsupported',
        `version ${versioned.data.version} of ${method} is not ${VERSION}, which this peer speaks`,
      )
    }
    throw new ShoalError('message_invalid', `a malformed ${method} message`, { cause })
  }
}
