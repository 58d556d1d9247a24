/**
 * The messages of circuit relay v2 (github.com/libp2p/specs, relay/circuit-v2.md), as protocol buffers. Only the fields
 * that a relay reads or writes: a reservation goes without its optional voucher.
 */
import { ShoalError } from '../errors.ts'

export const HOP_PROTOCOL = '/libp2p/circuit/relay/0.2.0/hop'
export const STOP_PROTOCOL = '/libp2p/circuit/relay/0.2.0/stop'

/** A peer id and a handful of addresses. */
export const RELAY_MESSAGE_BYTES = 4096

export const RELAY_STATUS = {
  ok: 100,
  reservationRefused: 200,
  resourceLimitExceeded: 201,
  permissionDenied: 202,
  connectionFailed: 203,
  noReservation: 204,
  malformedMessage: 400,
  unexpectedMessage: 401,
} as const
export type RelayStatus = (typeof RELAY_STATUS)[keyof typeof RELAY_STATUS]

/** What one relayed connection may use; left out: no limit. */
export interface CircuitLimit {
  seconds?: number | undefined
  bytes?: number | undefined
}

const HOP_TYPES = ['reserve', 'connect', 'status'] as const
const STOP_TYPES = ['connect', 'status'] as const

export interface HopRequest {
  type: 'reserve' | 'connect'
  /** Multihash of the peer to connect to. */
  peer?: Uint8Array | undefined
}

export function encodeHopRequest({ type, peer }: HopRequest): Uint8Array {
  const named = peer === undefined ? [] : bytesField(2, message(bytesField(1, peer)))
  return message(varintField(1, HOP_TYPES.indexOf(type)), named)
}

/** Throws `message_invalid`. */
export function decodeHopRequest(bytes: Uint8Array): HopRequest {
  const fields = readFields(bytes)
  const type = HOP_TYPES[fields.number(1) ?? -1]
  if (type === undefined || type === 'status') throw malformed('it is no request')
  return { type, peer: fields.message(2)?.bytes(1) }
}

export interface HopStatus {
  status: number
  limit?: CircuitLimit | undefined
  reservation?: { expiresSeconds: number; addresses: readonly Uint8Array[] } | undefined
}

export function encodeHopStatus({ status, limit, reservation }: HopStatus): Uint8Array {
  const fields = reservation && [
    varintField(1, reservation.expiresSeconds),
    ...reservation.addresses.map((address) => bytesField(2, address)),
  ]
  return message(
    varintField(1, HOP_TYPES.indexOf('status')),
    fields === undefined ? [] : bytesField(3, message(...fields)),
    limitField(4, limit),
    varintField(5, status),
  )
}

/** Throws `message_invalid`. */
export function decodeHopStatus(bytes: Uint8Array): HopStatus {
  const fields = readFields(bytes)
  const status = fields.number(5)
  if (HOP_TYPES[fields.number(1) ?? -1] !== 'status' || status === undefined) {
    throw malformed('it is no status')
  }
  const reservation = fields.message(3)
  return {
    status,
    limit: decodeLimit(fields.message(4)),
    reservation: reservation && {
      expiresSeconds: reservation.number(1) ?? 0,
      addresses: reservation.all(2),
    },
  }
}

/** Asks the called peer whether it takes the call of `peer`. */
export function encodeStopConnect(peer: Uint8Array, limit: CircuitLimit | undefined): Uint8Array {
  return message(
    varintField(1, STOP_TYPES.indexOf('connect')),
    bytesField(2, message(bytesField(1, peer))),
    limitField(3, limit),
  )
}

/** Throws `message_invalid`. */
export function decodeStopConnect(bytes: Uint8Array): {
  peer: Uint8Array
  limit: CircuitLimit | undefined
} {
  const fields = readFields(bytes)
  const peer = fields.message(2)?.bytes(1)
  if (STOP_TYPES[fields.number(1) ?? -1] !== 'connect' || peer === undefined) {
    throw malformed('it names no peer')
  }
  return { peer, limit: decodeLimit(fields.message(3)) }
}

export function encodeStopStatus(status: RelayStatus): Uint8Array {
  return message(varintField(1, STOP_TYPES.indexOf('status')), varintField(4, status))
}

/** Throws `message_invalid`. */
export function decodeStopStatus(bytes: Uint8Array): number {
  const fields = readFields(bytes)
  const status = fields.number(4)
  if (STOP_TYPES[fields.number(1) ?? -1] !== 'status' || status === undefined) {
    throw malformed('it is no status')
  }
  return status
}

/** A limit of nothing means that there is none. */
function decodeLimit(fields: Fields | undefined): CircuitLimit | undefined {
  const seconds = fields?.number(1) || undefined
  const bytes = fields?.number(2) || undefined
  return seconds === undefined && bytes === undefined ? undefined : { seconds, bytes }
}

function limitField(number: number, limit: CircuitLimit | undefined): number[] {
  if (limit === undefined) return []
  const { seconds, bytes } = limit
  return bytesField(
    number,
    message(
      seconds === undefined ? [] : varintField(1, seconds),
      bytes === undefined ? [] : varintField(2, bytes),
    ),
  )
}

function message(...fields: number[][]): Uint8Array {
  return Uint8Array.from(fields.flat())
}

function varintField(number: number, value: number): number[] {
  return [...varint(number << 3), ...varint(value)]
}

function bytesField(number: number, bytes: Uint8Array): number[] {
  return [...varint((number << 3) | 2), ...varint(bytes.length), ...bytes]
}

/** Any integer that a number holds exactly: limits exceed 32 bits. */
function varint(value: number): number[] {
  const bytes: number[] = []
  let rest = value
  while (rest >= 0x80) {
    bytes.push((rest % 0x80) | 0x80)
    rest = Math.floor(rest / 0x80)
  }
  return [...bytes, rest]
}

interface Fields {
  number(field: number): number | undefined
  bytes(field: number): Uint8Array | undefined
  message(field: number): Fields | undefined
  all(field: number): Uint8Array[]
}

/** Fixed-width fields, which the protocol has none of, are skipped. Throws `message_invalid`. */
function readFields(bytes: Uint8Array): Fields {
  const fields: [number, number | Uint8Array][] = []
  let at = 0
  const readVarint = (): number => {
    let value = 0
    for (let scale = 1; scale <= 2 ** 49; scale *= 0x80) {
      const byte = bytes[at++]
      if (byte === undefined) throw malformed('it ends early')
      value += (byte & 0x7f) * scale
      if (byte < 0x80) return value
    }
    throw malformed('a number is too long')
  }
  while (at < bytes.length) {
    const key = readVarint()
    const field = Math.floor(key / 8)
    const wireType = key % 8
    if (wireType === 0) {
      fields.push([field, readVarint()])
    } else if (wireType === 2) {
      const length = readVarint()
      if (length > bytes.length - at) throw malformed('it ends early')
      fields.push([field, bytes.subarray(at, at + length)])
      at += length
    } else if (wireType === 1 || wireType === 5) {
      at += wireType === 1 ? 8 : 4
    } else {
      throw malformed(`it has the unknown wire type ${wireType}`)
    }
  }
  const all = (field: number): (number | Uint8Array)[] =>
    fields.filter(([number]) => number === field).map(([, value]) => value)
  const allBytes = (field: number): Uint8Array[] =>
    all(field).filter((value) => value instanceof Uint8Array)
  return {
    // As protocol buffers have it: of a field that comes twice the last one counts.
    number: (field) => all(field).findLast((value) => typeof value === 'number'),
    bytes: (field) => allBytes(field).at(-1),
    message: (field) => {
      const inner = allBytes(field).at(-1)
      return inner && readFields(inner)
    },
    all: allBytes,
  }
}

function malformed(why: string): ShoalError {
  return new ShoalError('message_invalid', `malformed relay message: ${why}`)
}
