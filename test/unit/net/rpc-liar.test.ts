/** Called peers that break the protocol: raw libp2p nodes answering what they like. */
import type { Stream } from '@libp2p/interface'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import type { Clock } from '../../../src/clock.ts'
import { LIMITS } from '../../../src/limits.ts'
import { createFrameDecoder, encodeFrames } from '../../../src/net/frame.ts'
import type { Frame } from '../../../src/net/frame.ts'
import { RPC_PROTOCOLS } from '../../../src/net/rpc.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { createManualClock } from '../../manual-clock.ts'
import { until } from './memory-network.ts'
import { frame, STALL_MS, startVictim } from './rpc-victim.ts'
import type { Victim } from './rpc-victim.ts'

describe('a called peer that', () => {
  async function startLiar(
    answer: (stream: Stream, request: Frame) => void,
    clock: Clock = systemClock,
  ): Promise<Victim & { liar: string; streams: Stream[] }> {
    const victim = await startVictim(clock)
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
    const clock = createManualClock()
    const rests: (() => void)[] = []
    const { network, liar, streams } = await startLiar((stream, { id }) => {
      const reply = frame('reply', id, '', new Uint8Array(200_000).fill(7))
      const bytes = encodeFrames([reply]).subarray()
      stream.send(bytes.subarray(0, 100_000))
      rests.push(() => void stream.send(bytes.subarray(100_000)))
    }, clock)
    const into = new Uint8Array(200_000)
    const options = { deadlineMs: STALL_MS / 4, into }
    const call = expect(
      network.rpc.call(liar, 'test/x', new Uint8Array(), options),
    ).rejects.toMatchObject({ code: 'timeout' })
    await until(() => into.at(90_000) === 7)
    await clock.advance(Math.ceil(STALL_MS / 4))
    await call
    into.fill(1)
    rests[0]?.()
    // The stream lives, and what came late was dropped.
    const next = network.rpc.call(liar, 'test/x', new Uint8Array())
    await until(() => rests.length === 2)
    rests[1]?.()
    expect((await next).length).toBe(200_000)
    expect(streams).toHaveLength(1)
    expect(into.every((byte) => byte === 1)).toBe(true)
  })

  test('never answers is left after so many requests', async () => {
    const clock = createManualClock()
    let asked = 0
    const { network, liar, streams } = await startLiar(() => void asked++, clock)
    const call = (): Promise<unknown> =>
      network.rpc.call(liar, 'test/x', new Uint8Array(), { deadlineMs: 20 }).catch(() => {})
    const calls = Array.from({ length: LIMITS.rpcRequestsInFlight }, call)
    await until(() => asked === LIMITS.rpcRequestsInFlight)
    await clock.advance(20)
    await Promise.all(calls)
    await until(() => streams[0]?.status !== 'open')
    const another = call()
    await until(() => streams.length === 2)
    await clock.advance(20)
    await another
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
