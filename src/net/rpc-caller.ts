/** The asking end of an RPC stream: requests go out, replies and faults come back in any order. */
import { z } from 'zod'
import { abortReason } from '../clock.ts'
import { isFaultCode, messageOf, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { decodeCbor, encodeCbor } from '../store/content.ts'
import { createFrameChannel } from './frame-channel.ts'
import type { FrameChannel, FrameChannelOptions } from './frame-channel.ts'
import type { Frame } from './frame.ts'

/** Bytes of an encoded fault, and characters of its message. */
const FAULT_BYTES = 4096
const FAULT_MESSAGE_LENGTH = 512

export interface RpcCaller {
  /** Fires when the stream is gone; then `request` rejects. */
  readonly ended: AbortSignal
  /**
   * Rejects with the handler's fault, `peer_unreachable` when the stream ends first, `limit_exceeded` above
   * `LIMITS.rpcRequestsInFlight`, or the signal's reason. `onSent`: from now on the other side may see the request.
   */
  request(
    method: string,
    payload: Uint8Array,
    signal: AbortSignal,
    onSent: () => void,
  ): Promise<Uint8Array>
  end: (fault: ShoalError) => void
}

interface Pending {
  resolve: (payload: Uint8Array) => void
  reject: (fault: Error) => void
}

export function createRpcCaller(options: Omit<FrameChannelOptions, 'onFrame'>): RpcCaller {
  const pending = new Map<number, Pending>()
  /** Ids given up by this side whose reply may still come. */
  const abandoned = new Set<number>()
  let lastId = 0

  const channel = createFrameChannel({ ...options, onFrame: receive })
  channel.ended.addEventListener('abort', () => {
    const fault = abortReason(channel.ended)
    for (const { reject } of pending.values()) reject(fault)
    pending.clear()
  })

  function receive(frame: Frame, from: FrameChannel): void {
    const call = pending.get(frame.id)
    if (frame.kind === 'request' || (call === undefined && !abandoned.delete(frame.id))) {
      from.drop('unexpected', `the peer sent a ${frame.kind} that nobody asked for`)
      return
    }
    pending.delete(frame.id)
    if (frame.kind === 'reply') call?.resolve(frame.payload)
    else call?.reject(decodeFault(frame.payload))
  }

  function abandon(id: number): void {
    pending.delete(id)
    abandoned.add(id)
    if (abandoned.size >= LIMITS.rpcRequestsInFlight) {
      channel.end(
        new ShoalError('peer_unreachable', `the peer left ${abandoned.size} requests unanswered`),
      )
    }
  }

  return {
    ended: channel.ended,
    end: channel.end,
    request(method, payload, signal, onSent) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(abortReason(signal))
        if (channel.ended.aborted) return reject(abortReason(channel.ended))
        if (pending.size >= LIMITS.rpcRequestsInFlight) {
          return reject(
            new ShoalError('limit_exceeded', `${pending.size} requests to the peer are unanswered`),
          )
        }
        lastId = (lastId + 1) >>> 0
        const id = lastId
        const onAbort = (): void => {
          abandon(id)
          reject(abortReason(signal))
        }
        signal.addEventListener('abort', onAbort)
        const settled = (): void => signal.removeEventListener('abort', onAbort)
        pending.set(id, {
          resolve(reply) {
            settled()
            resolve(reply)
          },
          reject(fault) {
            settled()
            reject(fault)
          },
        })
        channel.send({ kind: 'request', id, method, payload }, onSent)
      })
    },
  }
}

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

function decodeFault(payload: Uint8Array): ShoalError {
  try {
    const { code, message } = faultSchema.parse(decodeCbor(payload, FAULT_BYTES))
    return new ShoalError(isFaultCode(code) ? code : 'internal', message, {
      details: { remote: true },
    })
  } catch (cause) {
    return new ShoalError(
      'message_invalid',
      `the peer sent an unreadable fault: ${messageOf(cause)}`,
      {
        cause,
      },
    )
  }
}
