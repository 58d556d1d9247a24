/**
 * STUN binding messages (RFC 8489) with the questions of RFC 5780 about a NAT's filter. The same bytes go over UDP and
 * TCP. Only what Shoal asks and answers; unknown attributes are skipped.
 */
import { isIPv4, SocketAddress } from 'node:net'
import type { Endpoint } from '../../src/net/nat.ts'

export const TRANSACTION_BYTES = 12
const HEADER_BYTES = 20
/** A response has two attributes at most; a request of another program may have some more. */
export const STUN_MESSAGE_BYTES = 548

const MAGIC = 0x2112a442
const REQUEST = 0x0001
const RESPONSE = 0x0101
const CHANGE_REQUEST = 0x0003
const XOR_MAPPED_ADDRESS = 0x0020

/** Asks for an answer from another port, or from another address and port: does it pass the NAT's filter? */
export type StunChange = 'none' | 'port' | 'address-and-port'
const CHANGE_FLAGS: Record<StunChange, number> = { none: 0, port: 2, 'address-and-port': 6 }

export type StunMessage =
  | { kind: 'request'; transaction: Uint8Array; change: StunChange }
  | { kind: 'response'; transaction: Uint8Array; mapped: Endpoint | undefined }

export function encodeRequest(transaction: Uint8Array, change: StunChange = 'none'): Buffer {
  const flags = Buffer.alloc(4)
  flags.writeUInt32BE(CHANGE_FLAGS[change])
  const attributes = change === 'none' ? [] : [attribute(CHANGE_REQUEST, flags)]
  return encode(REQUEST, transaction, attributes)
}

export function encodeResponse(transaction: Uint8Array, { host, port }: Endpoint): Buffer {
  const address = isIPv4(host) ? hostBytes4(host) : hostBytes6(host)
  const value = Buffer.alloc(4 + address.length)
  value[1] = address.length === 4 ? 1 : 2
  value.writeUInt16BE(port ^ (MAGIC >>> 16), 2)
  mask(address, transaction).copy(value, 4)
  return encode(RESPONSE, transaction, [attribute(XOR_MAPPED_ADDRESS, value)])
}

/** Length of the message that `bytes` begin with, or undefined while too little is here; 0 when it is no STUN. */
export function messageLength(bytes: Buffer): number | undefined {
  if (bytes.length < 8) return undefined
  const length = HEADER_BYTES + bytes.readUInt16BE(2)
  return bytes.readUInt32BE(4) === MAGIC && length <= STUN_MESSAGE_BYTES ? length : 0
}

/** Undefined for what is not a binding request or response. */
export function decodeStun(bytes: Buffer): StunMessage | undefined {
  if (bytes.length < HEADER_BYTES || messageLength(bytes) !== bytes.length) return undefined
  const type = bytes.readUInt16BE(0)
  const transaction = Buffer.from(bytes.subarray(8, HEADER_BYTES))
  const attributes = readAttributes(bytes)
  if (type === REQUEST) {
    const flags = attributes.get(CHANGE_REQUEST)
    const change = flags?.length === 4 ? changeOf(flags.readUInt32BE(0)) : 'none'
    return { kind: 'request', transaction, change }
  }
  if (type !== RESPONSE) return undefined
  const value = attributes.get(XOR_MAPPED_ADDRESS)
  return { kind: 'response', transaction, mapped: value && readAddress(value, transaction) }
}

function changeOf(flags: number): StunChange {
  if ((flags & 4) !== 0) return 'address-and-port'
  return (flags & 2) !== 0 ? 'port' : 'none'
}

function encode(type: number, transaction: Uint8Array, attributes: readonly Buffer[]): Buffer {
  const body = Buffer.concat(attributes)
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt16BE(type, 0)
  header.writeUInt16BE(body.length, 2)
  header.writeUInt32BE(MAGIC, 4)
  header.set(transaction, 8)
  return Buffer.concat([header, body])
}

function attribute(type: number, value: Buffer): Buffer {
  const padded = Buffer.alloc(4 + Math.ceil(value.length / 4) * 4)
  padded.writeUInt16BE(type, 0)
  padded.writeUInt16BE(value.length, 2)
  value.copy(padded, 4)
  return padded
}

function readAttributes(bytes: Buffer): Map<number, Buffer> {
  const attributes = new Map<number, Buffer>()
  let at = HEADER_BYTES
  while (at + 4 <= bytes.length) {
    const length = bytes.readUInt16BE(at + 2)
    const end = at + 4 + length
    if (end > bytes.length) break
    attributes.set(bytes.readUInt16BE(at), bytes.subarray(at + 4, end))
    at += 4 + Math.ceil(length / 4) * 4
  }
  return attributes
}

function readAddress(value: Buffer, transaction: Uint8Array): Endpoint | undefined {
  const bytes = value[1] === 1 ? 4 : 16
  if (value.length !== 4 + bytes) return undefined
  const port = value.readUInt16BE(2) ^ (MAGIC >>> 16)
  const address = mask(value.subarray(4), transaction)
  if (port === 0) return undefined
  if (bytes === 4) return { host: address.join('.'), port }
  const groups = Array.from({ length: 8 }, (_, group) =>
    address.readUInt16BE(2 * group).toString(16),
  )
  // As systems write it, so that it can be compared.
  return { host: new SocketAddress({ address: groups.join(':'), family: 'ipv6' }).address, port }
}

/** XOR with the magic number and the transaction: some NATs rewrite every address that they find in a packet. */
function mask(address: Buffer, transaction: Uint8Array): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32BE(MAGIC)
  key.set(transaction, 4)
  return Buffer.from(address.map((byte, index) => byte ^ (key[index] ?? 0)))
}

function hostBytes4(host: string): Buffer {
  return Buffer.from(host.split('.').map(Number))
}

function hostBytes6(host: string): Buffer {
  const [head = '', tail] = host.split('::')
  const parse = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16))
  const first = parse(head)
  const last = tail === undefined ? [] : parse(tail)
  const zeros = Array.from({ length: 8 - first.length - last.length }, () => 0)
  const bytes = Buffer.alloc(16)
  for (const [index, group] of [...first, ...zeros, ...last].entries()) {
    bytes.writeUInt16BE(group, 2 * index)
  }
  return bytes
}
