/** What two peers tell each other over a relay to find a direct path. */
import { z } from 'zod'
import { LIMITS } from '../limits.ts'
import { parseMessage } from '../store/message.ts'
import { isIpHost } from './addresses.ts'
import { sessionSchema } from './webrtc-session.ts'

export const DESCRIBE_METHOD = 'path/describe'
export const DIAL_METHOD = 'path/dial'
export const PUNCH_METHOD = 'path/punch'
export const GO_METHOD = 'path/go'
export const WEBRTC_METHOD = 'path/webrtc'

const MESSAGE_BYTES = 8192
export const TOKEN_BYTES = 16

const host = z.string().max(45).refine(isIpHost)
const addresses = z.array(z.string().max(256)).max(LIMITS.peerAddresses)

/** Where a peer may be dialled, from where it is seen, and what it can do. */
export const descriptionSchema = z.strictObject({
  addresses,
  hosts: z.array(host).max(4),
  kinds: z.array(z.enum(['tcp', 'udp', 'webrtc'])).max(3),
})
export type Description = z.infer<typeof descriptionSchema>

export const dialSchema = z.strictObject({ addresses })
export const dialReplySchema = z.strictObject({ isConnected: z.boolean() })

const mapping = z.enum(['independent', 'dependent'])

const offerSchema = z.strictObject({
  outside: z.strictObject({ host, port: z.int().min(1).max(65_535) }),
  mapping,
  streamId: z.int().min(0).max(0xffffffff),
})
const token = z.instanceof(Uint8Array).refine(({ length }) => length === TOKEN_BYTES)

export const punchSchema = z.strictObject({
  kind: z.enum(['tcp', 'udp']),
  token,
  offer: offerSchema,
})
export const punchReplySchema = z.strictObject({ offer: offerSchema })
export const goSchema = z.strictObject({ token })

/** `mapping`: of the caller's NAT, when it is known. */
export const webRtcSchema = z.strictObject({ session: sessionSchema, mapping: mapping.nullable() })
export const webRtcReplySchema = z.strictObject({ session: sessionSchema })

export function parsePath<T>(schema: z.ZodType<T>, bytes: Uint8Array): T {
  return parseMessage(schema, bytes, 'message about a path', MESSAGE_BYTES)
}
