import type { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { decodeCbor } from './content.ts'

/** Bounded dag-cbor bytes from outside, parsed. Throws `message_invalid` naming `what` and the field. */
export function parseMessage<T>(
  schema: z.ZodType<T>,
  bytes: Uint8Array,
  what: string,
  maxBytes: number = LIMITS.rpcMessageBytes,
): T {
  const parsed = schema.safeParse(decodeCbor(bytes, maxBytes))
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new ShoalError(
    'message_invalid',
    `malformed ${what} at ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`,
  )
}
