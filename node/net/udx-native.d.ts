/** The part of udx-native 1.21 (which has no types of its own) that is used here. */
declare module 'udx-native' {
  import type { EventEmitter } from 'node:events'
  import type { Duplex } from 'node:stream'

  interface UdxAddress {
    host: string
    port: number
  }

  export interface UdxSocket extends EventEmitter {
    bind(port: number, host: string): void
    address(): UdxAddress | null
    trySend(bytes: Uint8Array, port: number, host: string): void
    close(): Promise<void>
    on(event: 'message', listener: (bytes: Buffer, from: UdxAddress) => void): this
    off(event: 'message', listener: (bytes: Buffer, from: UdxAddress) => void): this
  }

  export interface UdxStream extends Duplex {
    connect(socket: UdxSocket, remoteId: number, port: number, host: string): void
    setKeepalive(milliseconds: number): void
  }

  export default class UDX {
    createSocket(): UdxSocket
    createStream(id: number): UdxStream
  }
}
