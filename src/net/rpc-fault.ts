/** Faults of handlers on the wire: dag-cbor of code and message. */
import { z } from 'zod'
import { isFaultCode, messageOf, ShoalError } from '../errors.ts'
import { decodeCbor, encodeCbor } from '../store/content.ts'

/** Bytes of an encoded fault, and characters of its message. */
const FAULT_BYTES = 4096
const FAULT_MESSAGE_LENGTH = 512

const faultSchema = z.strictObject({
  code: z.string().max(64),
  message: z.string().max(FAULT_MESSAGE_LENGTH),
})

/** Only a `ShoalError` travels; what else went wrong inside a handler is nobody else's business. */
export function encodeFault(thrown: unknown): Uint8Array {
  const fault =
    thrown instanceof ShoalError
      ? { code: thrown.code, message: thrown.message.slice(0, FAULT_MESSAGE_LENGTH) }
      : { code: 'internal', message: 'the peer failed to handle the request' }
  return encodeCbor(fault, FAULT_BYTES)
}

export function decodeFault(payload: Uint8Array): ShoalError {
  try {
    const { code, message } = faultSchema.parse(decodeCbor(payload, FAULT_BYTES))
    return new ShoalError(isFaultCode(code) ? code : 'internal', message, {
      details: { remote: true },
    })
  } catch (cause) {
    const message = `the peer sent an unreadable fault: ${messageOf(cause)}`
    return new ShoalError('message_invalid', message, { cause })
  }
}
