/** The decrypted side of a TLS socket as a libp2p message stream. */
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import type { AbortOptions, MessageStream } from '@libp2p/interface'
import { AbstractMessageStream } from '@libp2p/utils'
import type { SendResult } from '@libp2p/utils'
import { Uint8ArrayList } from 'uint8arraylist'
import { markExclusive } from '../../src/net/received-memory.ts'
import { wireOf } from '../../src/net/wire.ts'
import type { Wire } from '../../src/net/wire.ts'

/** The most that one TLS record carries, and that Node hands on at once. */
const RECORD_BYTES = 16 << 10
/** Records of a burst are handed on together up to this: each hand-over costs as much as decrypting a record. */
const READ_BYTES = 256 << 10
/** Small writes of one turn of the event loop are joined up to this: each write is a record and a system call. */
const WRITE_BYTES = 64 << 10

export interface TlsStreamOptions {
  /** What the TLS runs over. */
  connection: MessageStream
  socket: TLSSocket
  /** The socket below, when the TLS runs on its handle: then nothing passes through `connection`. */
  native?: Socket | undefined
}

/** The connection closes with it and the other way round; what the socket fails with aborts both. */
export class TlsStream extends AbstractMessageStream {
  private readonly connection: MessageStream
  private readonly socket: TLSSocket
  private readonly native: Socket | undefined
  private readonly wire: Wire | undefined
  /** Reads nothing until the cap on downloads allows it. */
  private isOverCap = false
  private received = new Uint8ArrayList()
  private readTimer: NodeJS.Immediate | undefined
  private writeTimer: NodeJS.Immediate | undefined

  constructor({ connection, socket, native }: TlsStreamOptions) {
    const { log, inactivityTimeout, maxReadBufferLength, direction } = connection
    super({ log, inactivityTimeout, maxReadBufferLength, direction })
    this.connection = connection
    this.socket = socket
    this.native = native
    this.wire = native && wireOf(connection)
    if (this.wire !== undefined) {
      this.wire.onSend = () => this.safeDispatchEvent('drain')
      this.wire.onReceive = () => this.readFurther()
    }
    socket.on('data', (chunk: Buffer) => this.receive(chunk))
    socket.on('drain', () => this.safeDispatchEvent('drain'))
    socket.on('error', (error) => connection.abort(error))
    socket.on('close', () => {
      this.flushReads()
      connection.close().catch((error: Error) => connection.abort(error))
    })
    connection.addEventListener('close', (event) => {
      socket.destroy()
      if (event.error === undefined) this.onTransportClosed()
      else if (event.local === true) this.abort(event.error)
      else this.onRemoteReset()
    })
  }

  async close(options?: AbortOptions): Promise<void> {
    await this.connection.close(options)
  }

  sendData(data: Uint8ArrayList): SendResult {
    const wanted = data.byteLength
    const sentBytes = this.wire?.allowSend(wanted) ?? wanted
    if (sentBytes === 0) return { sentBytes, canSendMore: false }
    const canSendMore = this.write(sentBytes < wanted ? data.sublist(0, sentBytes) : data)
    return { sentBytes, canSendMore: canSendMore && sentBytes === wanted }
  }

  private write(data: Uint8ArrayList): boolean {
    if (this.writeTimer === undefined) {
      this.socket.cork()
      this.writeTimer = setImmediate(() => this.flushWrites())
    }
    let canSendMore = true
    for (const part of data) canSendMore = this.socket.write(part)
    if (this.socket.writableLength >= WRITE_BYTES) this.flushWrites()
    return canSendMore
  }

  sendReset(error: Error): void {
    this.connection.abort(error)
  }

  sendPause(): void {
    this.socket.pause()
  }

  sendResume(): void {
    if (!this.isOverCap) this.socket.resume()
  }

  private readFurther(): void {
    this.isOverCap = false
    if (this.readStatus === 'readable') this.socket.resume()
  }

  private receive(chunk: Buffer): void {
    markExclusive(chunk)
    this.received.append(chunk)
    // A record that is not full ends a burst.
    if (chunk.length < RECORD_BYTES || this.received.byteLength >= READ_BYTES) this.flushReads()
    else this.readTimer ??= setImmediate(() => this.flushReads())
  }

  private flushReads(): void {
    clearImmediate(this.readTimer)
    this.readTimer = undefined
    this.count()
    if (this.received.byteLength === 0) return
    const received = this.received
    this.received = new Uint8ArrayList()
    this.onData(received)
  }

  private flushWrites(): void {
    clearImmediate(this.writeTimer)
    this.writeTimer = undefined
    this.socket.uncork()
    this.count()
  }

  private count(): void {
    if (this.native === undefined || this.wire === undefined) return
    if (this.wire.setTotals(this.native.bytesRead, this.native.bytesWritten)) return
    this.isOverCap = true
    this.socket.pause()
  }
}
