/** A slow, long line between two programs of one machine: a TCP proxy that hands bytes on at a rate, and late. */
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'

export interface LineOptions {
  /** Where the far end listens. */
  port: number
  bitsPerSecond: number
  roundTripMs: number
}

export interface Line {
  /** Where the near end is. */
  port: number
  close(): Promise<void>
}

/** What a router holds beyond what is on the line. */
const BUFFER_BYTES = 256 << 10

/** Both directions have the rate for themselves; all connections through the line share it. */
export async function openLine({ port, bitsPerSecond, roundTripMs }: LineOptions): Promise<Line> {
  const sockets = new Set<Socket>()
  const directions = [1, 2].map(() => createDirection(bitsPerSecond, roundTripMs / 2))
  const server = createServer({ noDelay: true }, (near) => {
    const far = connect({ host: '127.0.0.1', port, noDelay: true })
    const ends = [near, far]
    for (const [index, socket] of ends.entries()) {
      sockets.add(socket)
      const other = ends[1 - index]
      if (other !== undefined) directions[index]?.carry(socket, other)
      socket.on('error', () => other?.destroy())
      socket.on('close', () => {
        sockets.delete(socket)
        other?.destroy()
      })
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a listening TCP server has one
  const { port: nearPort } = server.address() as AddressInfo
  return {
    port: nearPort,
    async close() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

interface Packet {
  to: Socket
  bytes: Buffer
  arrivesMs: number
}

function createDirection(
  bitsPerSecond: number,
  delayMs: number,
): { carry(from: Socket, to: Socket): void } {
  const bytesPerMs = bitsPerSecond / 8000
  const mostBytes = bytesPerMs * delayMs + BUFFER_BYTES
  const packets: Packet[] = []
  const paused = new Set<Socket>()
  let heldBytes = 0
  let freeAtMs = 0
  let timer: NodeJS.Timeout | undefined

  function deliver(): void {
    timer = undefined
    const now = performance.now()
    let count = 0
    for (const { to, bytes, arrivesMs } of packets) {
      if (arrivesMs > now) break
      to.write(bytes)
      heldBytes -= bytes.length
      count++
    }
    packets.splice(0, count)
    if (heldBytes < mostBytes) {
      for (const socket of paused) socket.resume()
      paused.clear()
    }
    schedule()
  }

  function schedule(): void {
    const [next] = packets
    if (next === undefined) return
    timer ??= setTimeout(deliver, Math.max(0, next.arrivesMs - performance.now()))
  }

  return {
    carry(from, to) {
      from.on('data', (chunk: Buffer) => {
        // In pieces of about a millisecond, as packets come.
        for (let at = 0; at < chunk.length; at += 8192) {
          const bytes = chunk.subarray(at, at + 8192)
          freeAtMs = Math.max(freeAtMs, performance.now()) + bytes.length / bytesPerMs
          packets.push({ to, bytes, arrivesMs: freeAtMs + delayMs })
          heldBytes += bytes.length
        }
        if (heldBytes >= mostBytes) {
          from.pause()
          paused.add(from)
        }
        schedule()
      })
    },
  }
}
