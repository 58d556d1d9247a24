/** Peers that break the protocol: raw libp2p nodes writing what they like. */
import { memory } from '@libp2p/memory'
import type { Libp2p, Stream } from '@libp2p/interface'
import { plaintext } from '@libp2p/plaintext'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import * as fc from 'fast-check'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { createMetrics } from '../../../src/metrics.ts'
import type { Metrics } from '../../../src/metrics.ts'
import { createFrameDecoder, encodeFrames } from '../../../src/net/frame.ts'
import type { Frame } from '../../../src/net/frame.ts'
import type { Network } from '../../../src/net/network.ts'
import { RPC_PROTOCOLS } from '../../../src/net/rpc.ts'
import { decodeCbor, encodeCbor } from '../../../src/store/content.ts'
import { addressOf, freshAddress, startMemoryNetwork, until } from './memory-network.ts'

const STALL_MS = 150

async function startRaw(): Promise<Libp2p> {
  const raw = await createLibp2p({
    addresses: { listen: [freshAddress()] },
    transports: [memory()],
    connectionEncrypters: [plaintext()],
    streamMuxers: [
      yamux({ streamOptions: { initialStreamWindowSize: 1 << 20, maxStreamWindowSize: 4 << 20 } }),
    ],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => raw.stop())
  return raw
}

interface Victim {
  network: Network
  metrics: Metrics
  raw: Libp2p
  open: (lane?: keyof typeof RPC_PROTOCOLS) => Promise<Stream>
  dropped: (reason: string) => number
}

/** A network, and a raw node connected to it. */
async function startVictim(): Promise<Victim> {
  const metrics = createMetrics()
  const network = await startMemoryNetwork({ metrics, stallMs: STALL_MS })
  network.rpc.handle('test/echo', async (request) => request)
  const raw = await startRaw()
  const connection = await raw.dial(multiaddr(addressOf(network)))
  return {
    network,
    metrics,
    raw,
    open: (lane = 'control') => connection.newStream(RPC_PROTOCOLS[lane]),
    dropped: (reason) => metrics.read('rpc_streams_dropped_total', reason),
  }
}

/** Frames that come back. */
function listen(stream: Stream): Frame[] {
  const frames: Frame[] = []
  const read = async (): Promise<void> => {
    for await (const batch of createFrameDecoder().decode(stream)) frames.push(...batch)
  }
  read().catch(() => {})
  return frames
}

function frame(
  kind: Frame['kind'],
  id: number,
  method = '',
  payload: Uint8Array = new Uint8Array(),
): Frame {
  return { kind, id, method, payload }
}

/** The victim is well if it still answers an honest peer. */
async function expectWell(network: Network): Promise<void> {
  const honest = await startMemoryNetwork()
  await honest.connect(addressOf(network))
  expect(await honest.rpc.call(network.peerId, 'test/echo', Uint8Array.of(9))).toEqual(
    Uint8Array.of(9),
  )
}

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
    const { open, dropped } = await startVictim()
    const idle = await open()
    const replies = listen(idle)
    idle.send(encodeFrames([frame('request', 1, 'test/echo')]))
    const stuck = await open()
    stuck.send(
      encodeFrames([frame('request', 1, 'test/echo', new Uint8Array(100))]).subarray(0, 50),
    )
    await until(() => stuck.status !== 'open')
    expect(dropped('stalled')).toBe(1)
    await new Promise((resolve) => setTimeout(resolve, 2 * STALL_MS))
    expect(idle.status).toBe('open')
    expect(replies).toHaveLength(1)
  })

  test('sends a frame slowly but steadily is served', async () => {
    const { open, dropped } = await startVictim()
    const stream = await open()
    const replies = listen(stream)
    const whole = encodeFrames([frame('request', 1, 'test/echo', new Uint8Array(20))]).subarray()
    for (const byte of whole) {
      stream.send(Uint8Array.of(byte))
      await new Promise((resolve) => setTimeout(resolve, STALL_MS / 10))
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

describe('a called peer that', () => {
  async function startLiar(
    answer: (stream: Stream, request: Frame) => void,
  ): Promise<Victim & { liar: string; streams: Stream[] }> {
    const victim = await startVictim()
    const streams: Stream[] = []
    await victim.raw.handle(RPC_PROTOCOLS.control, (stream) => {
      streams.push(stream)
      const read = async (): Promise<void> => {
        for await (const requests of createFrameDecoder().decode(stream)) {
          for (const request of requests) answer(stream, request)
        }
      }
      read().catch(() => {})
    })
    return { ...victim, liar: victim.raw.peerId.toString(), streams }
  }

  test('answers what was not asked is cut off', async () => {
    const { network, liar, dropped } = await startLiar((stream, { id }) => {
      stream.send(encodeFrames([frame('reply', id + 1)]))
    })
    await expect(network.rpc.call(liar, 'test/x', new Uint8Array())).rejects.toMatchObject({
      code: 'peer_unreachable',
    })
    expect(dropped('unexpected')).toBe(1)
  })

  test('answers twice is cut off after the first answer counted', async () => {
    const { network, liar, dropped } = await startLiar((stream, { id }) => {
      stream.send(encodeFrames([frame('reply', id, '', Uint8Array.of(1))]))
      stream.send(encodeFrames([frame('reply', id, '', Uint8Array.of(2))]))
    })
    const reply = await network.rpc.call(liar, 'test/x', new Uint8Array())
    expect(reply).toEqual(Uint8Array.of(1))
    await until(() => dropped('unexpected') === 1)
  })

  test.each([
    ['no dag-cbor', Uint8Array.of(255, 1, 2), 'message_invalid'],
    ['other fields', encodeCbor({ code: 'conflict', message: 'x', stack: 'y' }), 'message_invalid'],
    ['an unknown code', encodeCbor({ code: 'toString', message: 'x' }), 'internal'],
    ['a known code', encodeCbor({ code: 'conflict', message: 'x' }), 'conflict'],
  ])('faults with %s', async (_what, payload, code) => {
    const { network, liar } = await startLiar((stream, { id }) => {
      stream.send(encodeFrames([frame('fault', id, '', payload)]))
    })
    await expect(network.rpc.call(liar, 'test/x', new Uint8Array())).rejects.toMatchObject({ code })
  })

  test('resets the stream: the call fails at once, the next opens another', async () => {
    let calls = 0
    const { network, liar, streams } = await startLiar((stream, { id }) => {
      calls++
      if (calls === 1) stream.abort(new Error('no'))
      else stream.send(encodeFrames([frame('reply', id)]))
    })
    await expect(network.rpc.call(liar, 'test/x', new Uint8Array())).rejects.toMatchObject({
      code: 'peer_unreachable',
    })
    await network.rpc.call(liar, 'test/x', new Uint8Array())
    // Once: a request that was sent is not sent again, for it may have been carried out.
    expect(calls).toBe(2)
    expect(streams).toHaveLength(2)
  })

  test('resets the stream under a call that may be made twice: it is, and not for ever', async () => {
    let calls = 0
    const { network, liar } = await startLiar((stream, { id, method }) => {
      calls++
      if (method === 'test/never' || calls < 3) stream.abort(new Error('no'))
      else stream.send(encodeFrames([frame('reply', id)]))
    })
    const call = (method: string): Promise<Uint8Array> =>
      network.rpc.call(liar, method, new Uint8Array(), { repeatable: true })
    expect(await call('test/x')).toEqual(new Uint8Array())
    expect(calls).toBe(3)
    await expect(call('test/never')).rejects.toMatchObject({ code: 'peer_unreachable' })
    expect(calls).toBe(7)
  })

  test('closes the stream politely: the next call opens another', async () => {
    const { network, liar, streams } = await startLiar((stream, { id }) => {
      stream.send(encodeFrames([frame('reply', id)]))
    })
    await network.rpc.call(liar, 'test/x', new Uint8Array())
    await streams[0]?.close()
    await new Promise((resolve) => setTimeout(resolve, 20))
    await network.rpc.call(liar, 'test/x', new Uint8Array())
    expect(streams).toHaveLength(2)
  })

  test('is called many times at once gets one stream', async () => {
    const { network, liar, streams } = await startLiar((stream, { id }) => {
      stream.send(encodeFrames([frame('reply', id)]))
    })
    await Promise.all(
      Array.from({ length: 20 }, () => network.rpc.call(liar, 'test/x', new Uint8Array())),
    )
    expect(streams).toHaveLength(1)
  })

  test('answers too late does not write into memory that is no longer its own', async () => {
    const { network, liar } = await startLiar((stream, { id }) => {
      const bytes = encodeFrames([
        frame('reply', id, '', new Uint8Array(200_000).fill(7)),
      ]).subarray()
      stream.send(bytes.subarray(0, 100_000))
      setTimeout(() => stream.send(bytes.subarray(100_000)), STALL_MS / 2)
    })
    const into = new Uint8Array(200_000)
    const options = { deadlineMs: STALL_MS / 4, into }
    await expect(network.rpc.call(liar, 'test/x', new Uint8Array(), options)).rejects.toMatchObject(
      { code: 'timeout' },
    )
    expect(into.at(90_000)).toBe(7)
    into.fill(1)
    await new Promise((resolve) => setTimeout(resolve, STALL_MS))
    // The stream lives, and what came late was dropped.
    expect((await network.rpc.call(liar, 'test/x', new Uint8Array())).length).toBe(200_000)
    expect(into.every((byte) => byte === 1)).toBe(true)
  })

  test('never answers is left after so many requests', async () => {
    const { network, liar, streams } = await startLiar(() => {})
    const call = (): Promise<unknown> =>
      network.rpc.call(liar, 'test/x', new Uint8Array(), { deadlineMs: 20 }).catch(() => {})
    await Promise.all(Array.from({ length: LIMITS.rpcRequestsInFlight }, call))
    await until(() => streams[0]?.status !== 'open')
    await call()
    expect(streams).toHaveLength(2)
  })

  test('takes no more bytes is left', async () => {
    const victim = await startVictim()
    await victim.raw.handle(RPC_PROTOCOLS.control, (stream) => {
      stream.addEventListener('message', () => {})
      stream.pause()
    })
    const liar = victim.raw.peerId.toString()
    const calls = Array.from({ length: 10 }, () =>
      victim.network.rpc.call(liar, 'test/x', new Uint8Array(1 << 20)),
    )
    const settled = await Promise.allSettled(calls)
    for (const { status } of settled) expect(status).toBe('rejected')
    // What could not be sent was tried once more, on a second stream.
    expect(victim.dropped('not_reading')).toBe(2)
  })

  test('does not speak peer RPC is unreachable', async () => {
    const { network, raw } = await startVictim()
    await expect(
      network.rpc.call(raw.peerId.toString(), 'test/x', new Uint8Array()),
    ).rejects.toMatchObject({ code: 'peer_unreachable' })
    expect(network.connectedPeers()).toEqual([])
    expect(network.links()).toHaveLength(1)
  })
})
