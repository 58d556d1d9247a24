/**
 * The framing of peer RPC, version 1. A frame is, big-endian:
 *
 *   payload length  u32   at most LIMITS.rpcMessageBytes
 *   id              u32   chosen by the caller; its reply or fault carries the same
 *   kind            u8    1 request, 2 reply, 3 fault
 *   method length   u8    at most LIMITS.rpcMethodLength; 0 unless a request
 *   method          ASCII `a-z 0-9 - /`
 *   payload
 *
 * A message is one frame. Whatever breaks these rules ends the stream: there is no way to find the next frame.
 */
import { Uint8ArrayList } from 'uint8arraylist'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'

export const FRAME_HEADER_BYTES = 10

const KINDS = ['request', 'reply', 'fault'] as const
export type FrameKind = (typeof KINDS)[number]

export interface Frame {
  kind: FrameKind
  id: number
  /** Empty unless a request. */
  method: string
  payload: Uint8Array
}

const METHOD = /^[a-z][a-z0-9/-]*$/

export function isMethodName(method: string): boolean {
  return method.length <= LIMITS.rpcMethodLength && METHOD.test(method)
}

/** Header and payload as a list: the payload is not copied. Throws `limit_exceeded` when the payload is too long. */
export function encodeFrame(frame: Frame): Uint8ArrayList {
  if (frame.payload.length > LIMITS.rpcMessageBytes) {
    throw new ShoalError(
      'limit_exceeded',
      `a message of ${frame.payload.length} bytes exceeds ${LIMITS.rpcMessageBytes}`,
    )
  }
  const method = new TextEncoder().encode(frame.method)
  const header = new Uint8Array(FRAME_HEADER_BYTES + method.length)
  const view = new DataView(header.buffer)
  view.setUint32(0, frame.payload.length)
  view.setUint32(4, frame.id)
  view.setUint8(8, KINDS.indexOf(frame.kind) + 1)
  view.setUint8(9, method.length)
  header.set(method, FRAME_HEADER_BYTES)
  return new Uint8ArrayList(header, frame.payload)
}

export interface FrameDecoder {
  /** A transform for `pipe`: bytes in any pieces to whole frames. Throws `message_invalid` at the first bad byte. */
  readonly decode: (source: AsyncIterable<Uint8Array | Uint8ArrayList>) => AsyncGenerator<Frame>
  /** Bytes seen, and whether they end in the middle of a frame: how a stalled sender is told from an idle one. */
  readonly bytesReceived: number
  readonly partial: boolean
}

/** Holds at most one frame and one piece of the source; memory grows only with bytes that have arrived. */
export function createFrameDecoder(): FrameDecoder {
  const buffer = new Uint8ArrayList()
  let bytesReceived = 0
  return {
    async *decode(source) {
      let header: Header | undefined
      for await (const piece of source) {
        bytesReceived += piece.byteLength
        buffer.append(piece)
        for (;;) {
          header ??= readHeader(buffer)
          if (header === undefined || buffer.byteLength < header.frameBytes) break
          yield readFrame(buffer, header)
          header = undefined
        }
      }
    },
    get bytesReceived() {
      return bytesReceived
    },
    get partial() {
      return buffer.byteLength > 0
    },
  }
}

interface Header {
  kind: FrameKind
  id: number
  methodBytes: number
  frameBytes: number
}

/** The header at the start of `buffer`, checked before anything is kept for it; undefined while incomplete. */
function readHeader(buffer: Uint8ArrayList): Header | undefined {
  if (buffer.byteLength < FRAME_HEADER_BYTES) return undefined
  const payloadBytes = buffer.getUint32(0)
  const kind = KINDS[buffer.get(8) - 1]
  const methodBytes = buffer.get(9)
  if (payloadBytes > LIMITS.rpcMessageBytes) {
    throw new ShoalError('message_invalid', `an RPC frame announces ${payloadBytes} bytes`)
  }
  if (kind === undefined) {
    throw new ShoalError('message_invalid', `an RPC frame has the unknown kind ${buffer.get(8)}`)
  }
  if (kind === 'request' ? methodBytes > LIMITS.rpcMethodLength : methodBytes > 0) {
    throw new ShoalError(
      'message_invalid',
      `an RPC ${kind} has a method name of ${methodBytes} bytes`,
    )
  }
  const frameBytes = FRAME_HEADER_BYTES + methodBytes + payloadBytes
  return { kind, id: buffer.getUint32(4), methodBytes, frameBytes }
}

function readFrame(buffer: Uint8ArrayList, header: Header): Frame {
  const { kind, id, methodBytes, frameBytes } = header
  const payloadStart = FRAME_HEADER_BYTES + methodBytes
  let method = ''
  if (kind === 'request') {
    method = String.fromCharCode(...buffer.subarray(FRAME_HEADER_BYTES, payloadStart))
    if (!isMethodName(method)) {
      throw new ShoalError('message_invalid', 'an RPC request has a malformed method name')
    }
  }
  // A copy: a view would keep the whole packet that it arrived in alive.
  const payload = buffer.slice(payloadStart, frameBytes)
  buffer.consume(frameBytes)
  return { kind, id, method, payload }
}
