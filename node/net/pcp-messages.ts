/**
 * Messages that ask a router to forward a TCP port: the Port Control Protocol (RFC 6887, opcode MAP) and NAT-PMP
 * (RFC 6886), which listens on the same port and answers to PCP that it does not know that version. Only what Shoal asks.
 */
import { isIPv4 } from 'node:net'

export const PCP_PORT = 5351
export const NONCE_BYTES = 12
/** RFC 6887 §7. */
const MESSAGE_BYTES = 1100
const PCP_VERSION = 2
const NAT_PMP_VERSION = 0
const PCP_HEADER_BYTES = 24
const PCP_MAP_BYTES = 60
const MAP = 1
const NAT_PMP_ADDRESS = 0
const NAT_PMP_MAP_TCP = 2
const ANSWER = 0x80
const TCP = 6

export interface MapRequest {
  /** Of this machine, IPv4. */
  localHost: string
  nonce: Uint8Array
  port: number
  /** What was granted before, or is wished for. */
  outsidePort: number
  /** 0 ends the mapping. */
  seconds: number
}

/** RFC 6887 §7.1 and §11.1. */
export function encodePcpMap(request: MapRequest): Buffer {
  const isEnd = request.seconds === 0
  const bytes = Buffer.alloc(PCP_MAP_BYTES)
  bytes[0] = PCP_VERSION
  bytes[1] = MAP
  bytes.writeUInt32BE(request.seconds, 4)
  mappedBytes(request.localHost).copy(bytes, 8)
  bytes.set(request.nonce, 24)
  bytes[36] = TCP
  bytes.writeUInt16BE(request.port, 40)
  bytes.writeUInt16BE(isEnd ? 0 : request.outsidePort, 42)
  // Any IPv4 address of the router.
  mappedBytes('0.0.0.0').copy(bytes, 44)
  return bytes
}

/** RFC 6886 §3.2. */
export function encodeNatPmpAddress(): Buffer {
  return Buffer.of(NAT_PMP_VERSION, NAT_PMP_ADDRESS)
}

/** RFC 6886 §3.3, and §3.4 for the end. */
export function encodeNatPmpMap({ port, outsidePort, seconds }: MapRequest): Buffer {
  const bytes = Buffer.alloc(12)
  bytes[1] = NAT_PMP_MAP_TCP
  bytes.writeUInt16BE(port, 4)
  bytes.writeUInt16BE(seconds === 0 ? 0 : outsidePort, 6)
  bytes.writeUInt32BE(seconds, 8)
  return bytes
}

export type RouterReply = {
  /** 0: done. */
  result: number
  /** Seconds since the router began anew, and knew no mapping. */
  epoch: number
} & (
  | {
      kind: 'pcp-map'
      nonce: Buffer
      port: number
      outsidePort: number
      /** Undefined when the router names none. */
      outsideHost: string | undefined
      seconds: number
    }
  | { kind: 'nat-pmp-address'; outsideHost: string | undefined }
  | { kind: 'nat-pmp-map'; port: number; outsidePort: number; seconds: number }
  /** The router does not know this protocol, or this version. */
  | { kind: 'unsupported' }
)

/** Undefined for what is no answer to anything that Shoal asks. */
export function decodeRouterReply(bytes: Buffer): RouterReply | undefined {
  if (bytes.length < 8 || bytes.length > MESSAGE_BYTES) return undefined
  const [version = 0, code = 0] = bytes
  if ((code & ANSWER) === 0) return undefined
  return version === NAT_PMP_VERSION
    ? decodeNatPmp(bytes, code & ~ANSWER)
    : decodePcp(bytes, code & ~ANSWER)
}

const UNSUPPORTED_VERSION = 1
const NAT_PMP_UNSUPPORTED_OPCODE = 5

function decodeNatPmp(bytes: Buffer, opcode: number): RouterReply | undefined {
  const common = { result: bytes.readUInt16BE(2), epoch: bytes.readUInt32BE(4) }
  const isUnsupported =
    common.result === UNSUPPORTED_VERSION || common.result === NAT_PMP_UNSUPPORTED_OPCODE
  if (isUnsupported) return { kind: 'unsupported', ...common }
  const isRefusal = common.result !== 0
  if (opcode === NAT_PMP_ADDRESS && (bytes.length === 12 || isRefusal)) {
    const host = isRefusal ? '0.0.0.0' : bytes.subarray(8).join('.')
    return { kind: 'nat-pmp-address', ...common, outsideHost: hostOf(host) }
  }
  if (opcode !== NAT_PMP_MAP_TCP || bytes.length !== 16) return undefined
  return {
    kind: 'nat-pmp-map',
    ...common,
    port: bytes.readUInt16BE(8),
    outsidePort: bytes.readUInt16BE(10),
    seconds: bytes.readUInt32BE(12),
  }
}

function decodePcp(bytes: Buffer, opcode: number): RouterReply | undefined {
  if (bytes.length < PCP_HEADER_BYTES || bytes.length % 4 !== 0) return undefined
  const common = { result: bytes[3] ?? 0, epoch: bytes.readUInt32BE(8) }
  if (common.result === UNSUPPORTED_VERSION) return { kind: 'unsupported', ...common }
  const isMap = bytes[0] === PCP_VERSION && opcode === MAP && bytes.length >= PCP_MAP_BYTES
  if (!isMap || bytes[36] !== TCP) return undefined
  return {
    kind: 'pcp-map',
    ...common,
    seconds: bytes.readUInt32BE(4),
    nonce: Buffer.from(bytes.subarray(24, 24 + NONCE_BYTES)),
    port: bytes.readUInt16BE(40),
    outsidePort: bytes.readUInt16BE(42),
    outsideHost: mappedHost(bytes.subarray(44, 60)),
  }
}

const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')

/** `::ffff:a.b.c.d`, as PCP writes IPv4. */
function mappedBytes(host: string): Buffer {
  if (!isIPv4(host)) throw new Error(`${host} is no IPv4 address`)
  return Buffer.concat([MAPPED_PREFIX, Buffer.from(host.split('.').map(Number))])
}

function mappedHost(bytes: Buffer): string | undefined {
  const isMapped = MAPPED_PREFIX.equals(bytes.subarray(0, MAPPED_PREFIX.length))
  return isMapped ? hostOf(bytes.subarray(MAPPED_PREFIX.length).join('.')) : undefined
}

function hostOf(host: string): string | undefined {
  return host === '0.0.0.0' ? undefined : host
}
