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
 *
 * A hundred thousand small frames a second pass here: they are written and read many at a time, byte by byte, and
 * without an object but the frame itself.
 */
import { Uint8ArrayList } from 'uint8arraylist'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { free } from './received-memory.ts'

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

/** Longer payloads are handed on as they are: one copy less is worth one more buffer then. */
const JOINED_BYTES = 8 << 10

const METHOD = /^[a-z][a-z0-9/-]*$/

export function isMethodName(method: string): boolean {
  return method.length <= LIMITS.rpcMethodLength && METHOD.test(method)
}

/** Bytes of the frame on the wire. Throws `limit_exceeded` when the payload is too long. */
export function frameBytes({ method, payload }: Frame): number {
  if (payload.length > LIMITS.rpcMessageBytes) {
    throw new ShoalError(
      'limit_exceeded',
      `a message of ${payload.length} bytes exceeds ${LIMITS.rpcMessageBytes}`,
    )
  }
  return FRAME_HEADER_BYTES + method.length + payload.length
}

/** The frames one after the other; long payloads are not copied. Throws `limit_exceeded` as `frameBytes` does. */
export function encodeFrames(frames: readonly Frame[]): Uint8ArrayList {
  const list = new Uint8ArrayList()
  let joinedBytes = 0
  for (const frame of frames) {
    const { length } = frame.payload
    joinedBytes += frameBytes(frame) - (length > JOINED_BYTES ? length : 0)
  }
  const joined = new Uint8Array(joinedBytes)
  let start = 0
  let end = 0
  for (const { kind, id, method, payload } of frames) {
    writeUint32(joined, end, payload.length)
    writeUint32(joined, end + 4, id)
    joined[end + 8] = KINDS.indexOf(kind) + 1
    joined[end + 9] = method.length
    end += FRAME_HEADER_BYTES
    for (let index = 0; index < method.length; index++) joined[end++] = method.charCodeAt(index)
    if (payload.length > JOINED_BYTES) {
      list.append(joined.subarray(start, end))
      list.append(payload)
      start = end
    } else {
      joined.set(payload, end)
      end += payload.length
    }
  }
  if (end > start) list.append(joined.subarray(start, end))
  return list
}

function writeUint32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

export interface FrameDecoder {
  /** A transform for `pipe`: bytes in any pieces to the whole frames of each. Throws `message_invalid` at the first bad byte. */
  readonly decode: (source: AsyncIterable<Uint8Array | Uint8ArrayList>) => AsyncGenerator<Frame[]>
  /** Bytes seen, and whether they end in the middle of a frame: how a stalled sender is told from an idle one. */
  readonly bytesReceived: number
  readonly partial: boolean
  /** From now on a reply that is under way is not written to its destination any more. */
  leaveDestination(id: number): void
}

/** Where the payload of a reply goes; undefined for memory of its own. It holds at least as many bytes. */
export type Destination = (id: number, payloadBytes: number) => Uint8Array | undefined

/** Holds at most one frame and one piece of the source; memory grows only with bytes that have arrived. */
export function createFrameDecoder(destination?: Destination): FrameDecoder {
  const parser = new FrameParser(destination)
  let bytesReceived = 0
  return {
    async *decode(source) {
      for await (const piece of source) {
        bytesReceived += piece.byteLength
        const frames: Frame[] = []
        let ahead = piece.byteLength
        for (const part of piece instanceof Uint8Array ? [piece] : piece) {
          ahead -= part.byteLength
          // A Node buffer takes slices as views.
          parser.read(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), ahead, frames)
        }
        if (frames.length > 0) yield frames
      }
    },
    get bytesReceived() {
      return bytesReceived
    },
    get partial() {
      return parser.isPartial()
    },
    leaveDestination: (id) => parser.leaveDestination(id),
  }
}

interface Header {
  kind: FrameKind
  id: number
  methodBytes: number
  payloadBytes: number
}

const NOTHING = new Uint8Array()

/** What is kept between two pieces: an incomplete header, or a header and the part of its body that is here. */
class FrameParser {
  #start = NOTHING
  #header: Header | undefined
  #body: Uint8Array = NOTHING
  #bodyBytes = 0
  /** Of the last request: a caller asks for the same again and again, and a comparison costs less than a string. */
  #method = ''
  readonly #destination: Destination | undefined

  constructor(destination: Destination | undefined) {
    this.#destination = destination
  }

  isPartial(): boolean {
    return this.#header !== undefined || this.#start.length > 0
  }

  /** Adds the frames that `bytes` make whole. `ahead`: bytes that have arrived too and are read next. */
  read(bytes: Uint8Array, ahead: number, frames: Frame[]): void {
    if (this.#start.length > 0) {
      const joined = new Uint8Array(this.#start.length + bytes.length)
      joined.set(this.#start)
      joined.set(bytes, this.#start.length)
      this.#start = NOTHING
      bytes = joined
    }
    let at = this.#header === undefined ? 0 : this.#readBody(this.#header, bytes, 0, ahead, frames)
    while (bytes.length - at >= FRAME_HEADER_BYTES) {
      const header = readHeader(bytes, at)
      at += FRAME_HEADER_BYTES
      const payloadAt = at + header.methodBytes
      const end = payloadAt + header.payloadBytes
      if (end > bytes.length) {
        this.#header = header
        at = this.#readBody(header, bytes, at, ahead, frames)
      } else {
        // A copy: a view would keep the whole packet that it arrived in alive.
        frames.push(this.#frameOf(header, bytes, at, bytes.slice(payloadAt, end)))
        at = end
      }
    }
    if (at < bytes.length) this.#start = bytes.slice(at)
  }

  leaveDestination(id: number): void {
    if (this.#header?.kind !== 'reply' || this.#header.id !== id) return
    const own = new Uint8Array(this.#body.length)
    own.set(this.#body.subarray(0, this.#bodyBytes))
    this.#body = own
  }

  /** Returns where the next frame begins. */
  #readBody(header: Header, bytes: Uint8Array, at: number, ahead: number, to: Frame[]): number {
    const wholeBytes = header.methodBytes + header.payloadBytes
    const missing = wholeBytes - this.#bodyBytes
    const hereBytes = this.#bodyBytes + bytes.length - at
    this.#reserve(header, wholeBytes, hereBytes, hereBytes + ahead)
    const taken = bytes.subarray(at, at + missing)
    const takenBytes = taken.length
    this.#body.set(taken, this.#bodyBytes)
    this.#bodyBytes += takenBytes
    free(taken)
    if (takenBytes === missing) {
      to.push(this.#frameOf(header, this.#body, 0, this.#body.subarray(header.methodBytes)))
      this.#header = undefined
      this.#body = NOTHING
      this.#bodyBytes = 0
    }
    return at + takenBytes
  }

  /** Room for all that has arrived, and beyond it for no more than 16 times of what is here. */
  #reserve(header: Header, wholeBytes: number, hereBytes: number, arrivedBytes: number): void {
    if (this.#body.length >= Math.min(wholeBytes, arrivedBytes)) return
    if (this.#bodyBytes === 0 && header.kind === 'reply') {
      const destination = this.#destination?.(header.id, wholeBytes)
      if (destination !== undefined) {
        this.#body = destination.subarray(0, wholeBytes)
        return
      }
    }
    const body = new Uint8Array(Math.min(wholeBytes, Math.max(arrivedBytes, 16 * hereBytes)))
    body.set(this.#body.subarray(0, this.#bodyBytes))
    this.#body = body
  }

  #frameOf(header: Header, bytes: Uint8Array, methodAt: number, payload: Uint8Array): Frame {
    const { kind, id, methodBytes } = header
    const method = kind === 'request' ? this.#readMethod(bytes, methodAt, methodBytes) : ''
    return { kind, id, method, payload }
  }

  #readMethod(bytes: Uint8Array, at: number, length: number): string {
    const known = this.#method
    let same = 0
    if (known.length === length) {
      while (same < length && bytes[at + same] === known.charCodeAt(same)) same++
    }
    if (same === length && length > 0) return known
    const method = String.fromCharCode(...bytes.subarray(at, at + length))
    if (!isMethodName(method)) {
      throw new ShoalError('message_invalid', 'an RPC request has a malformed method name')
    }
    this.#method = method
    return method
  }
}

/** Checked before anything is kept for the frame. */
function readHeader(bytes: Uint8Array, at: number): Header {
  const payloadBytes = readUint32(bytes, at)
  const kindByte = bytes[at + 8] ?? 0
  const kind = KINDS[kindByte - 1]
  const methodBytes = bytes[at + 9] ?? 0
  if (payloadBytes > LIMITS.rpcMessageBytes) {
    throw new ShoalError('message_invalid', `an RPC frame announces ${payloadBytes} bytes`)
  }
  if (kind === undefined) {
    throw new ShoalError('message_invalid', `an RPC frame has the unknown kind ${kindByte}`)
  }
  if (kind === 'request' ? methodBytes > LIMITS.rpcMethodLength : methodBytes > 0) {
    throw new ShoalError(
      'message_invalid',
      `an RPC ${kind} has a method name of ${methodBytes} bytes`,
    )
  }
  return { kind, id: readUint32(bytes, at + 4), methodBytes, payloadBytes }
}

function readUint32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] ?? 0) << 24) |
      ((bytes[at + 1] ?? 0) << 16) |
      ((bytes[at + 2] ?? 0) << 8) |
      (bytes[at + 3] ?? 0)) >>>
    0
  )
}
