/** Callers that break the protocol: raw libp2p nodes writing what they like. */
import type { Stream } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { encodeFrames } from '../../../src/net/frame.ts'
import { decodeCbor } from '../../../src/store/content.ts'
import { createManualClock } from '../../manual-clock.ts'
import { addressOf, until } from './memory-network.ts'
import { expectWell, frame, listen, STALL_MS, startVictim } from './rpc-victim.ts'

describe('a caller that', () => {
  test('speaks the protocol by hand is answered', async () => {
    const { open } = await startVictim()
    const stream = await open()
    const replies = listen(stream)
    stream.send(encodeFrames([frame('request', 5, 'test/echo', Uint8Array.of(1, 2, 3))]))
    await until(() => replies.length === 1)
    expect(replies[0]).toEqual(frame('reply', 5, '', Uint8Array.of(1, 2, 3)))
  })

  test.each([
    ['announces 4 GiB', Uint8Array.of(255, 255, 255, 255, 0, 0, 0, 1, 1, 0)],
    ['sends an unknown kind', Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 1, 9, 0)],
    ['has no method', Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 1, 1, 0)],
    ['speaks HTTP', new TextEncoder().encode('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
  ])('%s is cut off', async (_what, garbage) => {
    const { open, dropped, network } = await startVictim()
    const stream = await open()
    stream.send(garbage)
    await until(() => stream.status !== 'open')
    expect(dropped('malformed')).toBe(1)
    await expectWell(network)
  })

  test('sends arbitrary bytes never harms the others', async () => {
    const { open, network } = await startVictim()
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { maxLength: 5 }),
        async (pieces) => {
          try {
            const stream = await open()
            for (const piece of pieces) stream.send(piece)
            stream.abort(new Error('next'))
          } catch {
            // Cut off, or sent away altogether.
          }
        },
      ),
      { numRuns: 100 },
    )
    await expectWell(network)
  })

  test('goes on after it was cut off is sent away', async () => {
    const { open, metrics, network, raw } = await startVictim()
    for (let time = 1; time <= 4; time++) {
      const stream = await open()
      stream.send(Uint8Array.of(255, 255, 255, 255, 0, 0, 0, 1, 1, 0))
      await until(() => stream.status !== 'open')
    }
    await until(() => raw.getConnections().length === 0)
    expect(metrics.read('peer_offences_total', 'malformed')).toBe(4)
    expect(metrics.read('peers_banned_total', 'malformed')).toBe(1)
    await expect(raw.dial(multiaddr(addressOf(network)))).rejects.toThrow()
    await expectWell(network)
  })

  test.each(['reply', 'fault'] as const)('sends a %s is cut off', async (kind) => {
    const { open, dropped } = await startVictim()
    const stream = await open()
    stream.send(encodeFrames([frame(kind, 1)]))
    await until(() => stream.status !== 'open')
    expect(dropped('unexpected')).toBe(1)
  })

  test('stops in the middle of a frame is cut off, one that is idle between frames is not', async () => {
    const clock = createManualClock()
    const { open, dropped } = await startVictim(clock)
    const idle = await open()
    const replies = listen(idle)
    idle.send(encodeFrames([frame('request', 1, 'test/echo')]))
    await until(() => replies.length === 1)
    const stuck = await open()
    stuck.send(
      encodeFrames([frame('request', 1, 'test/echo', new Uint8Array(100))]).subarray(0, 50),
    )
    while (stuck.status === 'open') await clock.advance(STALL_MS / 10)
    expect(dropped('stalled')).toBe(1)
    await clock.advance(2 * STALL_MS)
    expect(idle.status).toBe('open')
    expect(replies).toHaveLength(1)
  })

  test('sends a frame slowly but steadily is served', async () => {
    const clock = createManualClock()
    const { open, dropped } = await startVictim(clock)
    const stream = await open()
    const replies = listen(stream)
    const whole = encodeFrames([frame('request', 1, 'test/echo', new Uint8Array(20))]).subarray()
    for (const byte of whole) {
      stream.send(Uint8Array.of(byte))
      await clock.advance(STALL_MS / 10)
    }
    await until(() => replies.length === 1)
    expect(dropped('stalled')).toBe(0)
  })

  test('has too many requests unanswered is told so, and goes on afterwards', async () => {
    const { network, open, metrics } = await startVictim()
    const waiting: (() => void)[] = []
    network.rpc.handle('test/held', async (request) => {
      await new Promise<void>((resolve) => waiting.push(resolve))
      return request
    })
    const stream = await open()
    const replies = listen(stream)
    const count = LIMITS.rpcRequestsInFlight + 3
    for (let id = 1; id <= count; id++)
      stream.send(encodeFrames([frame('request', id, 'test/held')]))
    await until(() => replies.length === 3)
    for (const reply of replies) {
      expect(reply.kind).toBe('fault')
      expect(decodeCbor(reply.payload, 1000)).toMatchObject({ code: 'limit_exceeded' })
    }
    expect(metrics.read('rpc_requests_total', 'limit_exceeded')).toBe(3)
    await until(() => {
      for (const resolve of waiting.splice(0)) resolve()
      return replies.length === count
    })
    stream.send(encodeFrames([frame('request', count + 1, 'test/echo')]))
    await until(() => replies.length === count + 1)
  })

  test('fills the memory with large requests is told to stop', async () => {
    const { network, open } = await startVictim()
    network.rpc.handle('test/held', () => new Promise(() => {}))
    const stream = await open()
    const replies = listen(stream)
    const payload = new Uint8Array(1 << 20)
    for (let id = 1; id <= 20; id++) {
      stream.send(encodeFrames([frame('request', id, 'test/held', payload)]))
    }
    await until(() => replies.length === 4)
    expect(replies.map(({ id }) => id)).toEqual([17, 18, 19, 20])
  })

  test('asks without reading is cut off, and costs a few blobs of memory at most', async () => {
    const { network, open, dropped } = await startVictim()
    let made = 0
    network.rpc.handle('test/blob', async () => {
      made++
      return new Uint8Array(1 << 20)
    })
    const stream = await open('bulk')
    stream.addEventListener('message', () => {})
    stream.pause()
    for (let id = 1; id <= LIMITS.rpcRequestsInFlight; id++) {
      stream.send(encodeFrames([frame('request', id, 'test/blob')]))
    }
    await until(() => dropped('not_reading') === 1)
    // The places of the bulk lane, and what fits into the window of the stream.
    expect(made).toBeLessThan(LIMITS.chunksInFlight + 6)
    await expectWell(network)
  })

  test('floods with requests over the limit and reads no answer is cut off', async () => {
    const { network, open, dropped } = await startVictim()
    network.rpc.handle('test/held', () => new Promise(() => {}))
    network.rpc.handle('test/blob', async () => new Uint8Array(1 << 20))
    const stream = await open()
    stream.addEventListener('message', () => {})
    stream.pause()
    try {
      for (let id = 1; id <= 60; id++)
        stream.send(encodeFrames([frame('request', id, 'test/blob')]))
      for (let id = 61; id <= 60 + 4 * LIMITS.rpcRequestsInFlight; id++) {
        stream.send(encodeFrames([frame('request', id, 'test/held')]))
      }
    } catch {
      // Cut off already.
    }
    await until(() => dropped('not_reading') === 1)
    await expectWell(network)
  })

  test('opens stream after stream loses the oldest', async () => {
    const { open, dropped } = await startVictim()
    const streams: Stream[] = []
    for (let index = 0; index <= LIMITS.rpcStreamsPerPeer; index++) {
      streams.push(await open(index % 2 === 0 ? 'control' : 'bulk'))
    }
    await until(() => dropped('too_many') === 1)
    await until(() => streams[0]?.status !== 'open')
    const last = streams.at(-1)
    if (last === undefined) throw new Error('no stream')
    const replies = listen(last)
    last.send(encodeFrames([frame('request', 1, 'test/echo')]))
    await until(() => replies.length === 1)
  })
})
