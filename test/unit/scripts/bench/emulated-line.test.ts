import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { openLine } from '../../../../scripts/bench/emulated-line.ts'

/** Echoes bytes over a line; returns the near end. */
async function overLine(bitsPerSecond: number, roundTripMs: number): Promise<Socket> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a listening TCP server has one
  const { port } = server.address() as AddressInfo
  const line = await openLine({ port, bitsPerSecond, roundTripMs })
  const socket = connect({ host: '127.0.0.1', port: line.port, noDelay: true })
  onTestFinished(async () => {
    socket.destroy()
    await line.close()
    server.close()
  })
  await once(socket, 'connect')
  return socket
}

describe('an emulated line', () => {
  test('hands bytes on whole, in order, no faster than its rate', async () => {
    const socket = await overLine(40e6, 10)
    const sent = Buffer.alloc(1_000_000, 'all bytes in their order, ')
    const startedMs = performance.now()
    socket.write(sent)
    const received: Buffer[] = []
    let bytes = 0
    for await (const chunk of socket) {
      received.push(Buffer.from(chunk))
      bytes += Buffer.from(chunk).length
      if (bytes >= sent.length) break
    }
    const elapsedMs = performance.now() - startedMs
    expect(Buffer.concat(received).equals(sent)).toBe(true)
    // 200 ms for the bytes, and the way there and back.
    expect(elapsedMs).toBeGreaterThan(205)
  })

  test('is late by its round trip', async () => {
    const socket = await overLine(100e6, 60)
    for (let time = 0; time < 3; time++) {
      const startedMs = performance.now()
      socket.write('x')
      await once(socket, 'data')
      expect(performance.now() - startedMs).toBeGreaterThan(59)
    }
  })

  test('ends with either end', async () => {
    const socket = await overLine(100e6, 1)
    const closed = once(socket, 'close')
    socket.end('x')
    socket.resume()
    await closed
  })
})
