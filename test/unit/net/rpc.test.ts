import { describe, expect, onTestFinished, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import { LIMITS } from '../../../src/limits.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import type { Network } from '../../../src/net/network.ts'
import {
  addressOf,
  createRecorder,
  freshAddress,
  startMemoryNetwork,
  startPair,
  until,
} from './memory-network.ts'

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const text = (from: Uint8Array): string => new TextDecoder().decode(from)
const fault = (code: string, message?: string): unknown =>
  expect.objectContaining({
    code,
    ...(message !== undefined && { message: expect.stringContaining(message) }),
  })

/** Answers when the test lets it. */
function heldHandler(network: Network, method: string): { held: number[]; release: () => void } {
  const held: number[] = []
  const waiting: (() => void)[] = []
  network.rpc.handle(method, async (request) => {
    held.push(request[0] ?? -1)
    await new Promise<void>((resolve) => waiting.push(resolve))
    return request
  })
  return {
    held,
    release() {
      for (const resolve of waiting.splice(0).toReversed()) resolve()
    },
  }
}

describe('a call', () => {
  test.each([0, 1, 65_536, LIMITS.rpcMessageBytes])('carries %i bytes both ways', async (size) => {
    const [client, server] = await startPair()
    server.rpc.handle('test/echo', async (request) => request)
    const request = new Uint8Array(size).map((_, index) => index % 253)
    const reply = await client.rpc.call(server.peerId, 'test/echo', request)
    expect(reply.length).toBe(size)
    expect(reply.every((byte, index) => byte === request[index])).toBe(true)
  })

  test('goes both ways over one connection, and tells who calls', async () => {
    const [client, server] = await startPair()
    for (const network of [client, server]) {
      network.rpc.handle('test/who', async (_request, { peer }) => bytes(peer))
    }
    expect(text(await client.rpc.call(server.peerId, 'test/who', bytes('')))).toBe(client.peerId)
    expect(text(await server.rpc.call(client.peerId, 'test/who', bytes('')))).toBe(server.peerId)
    expect(client.links()).toHaveLength(1)
  })

  test('dials when not connected', async () => {
    const boot = await startMemoryNetwork()
    const [a, b] = [
      await startMemoryNetwork({ bootstrap: boot.addresses() }),
      await startMemoryNetwork({ bootstrap: boot.addresses() }),
    ]
    b.rpc.handle('test/echo', async (request) => request)
    await until(() => a.connectedPeers().length === 1 && b.connectedPeers().length === 1)
    // `a` knows only the bootstrap peer, which knows `b`.
    expect(text(await a.rpc.call(b.peerId, 'test/echo', bytes('hello')))).toBe('hello')
  })

  test('may be under way many times; replies find their requests in any order', async () => {
    const [client, server] = await startPair()
    const { held, release } = heldHandler(server, 'test/held')
    const calls = Array.from({ length: LIMITS.rpcHandlersPerStream }, (_, index) =>
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(index)),
    )
    await until(() => held.length === calls.length)
    release()
    expect((await Promise.all(calls)).map(([first]) => first)).toEqual(calls.map((_, i) => i))
  })

  test('beyond what the peer takes at once waits here, so many and no more', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/echo', async (request) => request)
    await client.rpc.call(server.peerId, 'test/echo', bytes(''))
    const room = LIMITS.rpcRequestsInFlight + LIMITS.rpcCallsWaiting
    const calls = Array.from({ length: room }, (_, index) =>
      client.rpc.call(server.peerId, 'test/echo', Uint8Array.of(index, index >> 8)),
    )
    await expect(client.rpc.call(server.peerId, 'test/echo', bytes('x'))).rejects.toThrow(
      fault('limit_exceeded'),
    )
    const replies = await Promise.all(calls)
    expect(replies.map(([low = 0, high = 0]) => low + 256 * high)).toEqual(calls.map((_, i) => i))
  })

  test('that waits ends at its deadline or its signal like any other', async () => {
    const [client, server] = await startPair()
    const { held, release } = heldHandler(server, 'test/held')
    const calls = Array.from({ length: LIMITS.rpcRequestsInFlight }, () =>
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(1)),
    )
    const settled = Promise.allSettled(calls)
    const late = new AbortController()
    const waiting = [
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(2), { deadlineMs: 50 }),
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(2), { signal: late.signal }),
    ]
    await expect(waiting[0]).rejects.toThrow(fault('timeout', 'test/held'))
    late.abort(new ShoalError('conflict', 'the run was left'))
    await expect(waiting[1]).rejects.toThrow(fault('conflict'))
    const drain = setInterval(release, 1)
    onTestFinished(() => clearInterval(drain))
    expect((await settled).every(({ status }) => status === 'fulfilled')).toBe(true)
    // They never left.
    expect(held).not.toContain(2)
  })

  test('in large numbers with large messages is held back, not refused', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/echo', async (request) => request)
    const request = new Uint8Array(1 << 20).fill(7)
    const calls = Array.from({ length: 40 }, () =>
      client.rpc.call(server.peerId, 'test/echo', request),
    )
    for (const reply of await Promise.all(calls)) expect(reply.length).toBe(1 << 20)
  })

  test('on the bulk lane is not held up by the control lane, nor the other way round', async () => {
    const [client, server] = await startPair()
    const { held, release } = heldHandler(server, 'test/held')
    server.rpc.handle('test/echo', async (request) => request)
    const calls = Array.from({ length: 8 * LIMITS.chunksInFlight }, () =>
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(0), { lane: 'bulk' }),
    )
    await until(() => held.length === LIMITS.chunksInFlight)
    expect(await client.rpc.call(server.peerId, 'test/echo', Uint8Array.of(1))).toEqual(
      Uint8Array.of(1),
    )
    expect(held).toHaveLength(LIMITS.chunksInFlight)
    while (held.length < calls.length) {
      release()
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    release()
    await Promise.all(calls)
  })

  test('fails with the code and message of the handler', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/fault', async () => {
      throw new ShoalError('conflict', 'the run is paused')
    })
    await expect(client.rpc.call(server.peerId, 'test/fault', bytes(''))).rejects.toThrow(
      fault('conflict', 'the run is paused'),
    )
  })

  test('does not learn what went wrong inside', async () => {
    const { logger, events } = createRecorder()
    const server = await startMemoryNetwork({ logger })
    const client = await startMemoryNetwork()
    await client.connect(addressOf(server))
    server.rpc.handle('test/broken', async () => {
      throw new TypeError('secret path /home/me')
    })
    server.rpc.handle('test/too-long', async () => new Uint8Array(LIMITS.rpcMessageBytes + 1))
    for (const method of ['test/broken', 'test/too-long']) {
      const failed = client.rpc.call(server.peerId, method, bytes(''))
      await expect(failed).rejects.toThrow(fault('internal', 'failed to handle'))
      await expect(failed).rejects.not.toThrow(/secret/)
    }
    expect(events).toContainEqual(
      expect.objectContaining({
        event: 'rpc_handler_failed',
        fields: { method: 'test/broken', message: 'secret path /home/me' },
      }),
    )
  })

  test('to a method that is not offered, or no more, is refused', async () => {
    const [client, server] = await startPair()
    const remove = server.rpc.handle('test/echo', async (request) => request)
    await client.rpc.call(server.peerId, 'test/echo', bytes(''))
    remove()
    await expect(client.rpc.call(server.peerId, 'test/echo', bytes(''))).rejects.toThrow(
      fault('refused', 'test/echo'),
    )
  })

  test('ends at its deadline; the late reply disturbs nothing', async () => {
    const [client, server] = await startPair()
    const { held, release } = heldHandler(server, 'test/held')
    server.rpc.handle('test/echo', async (request) => request)
    const options = { deadlineMs: 50 }
    await expect(
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(1), options),
    ).rejects.toThrow(fault('timeout', 'test/held'))
    expect(held).toEqual([1])
    release()
    expect(await client.rpc.call(server.peerId, 'test/echo', Uint8Array.of(2))).toEqual(
      Uint8Array.of(2),
    )
  })

  test('ends when it is aborted, before and after it was sent', async () => {
    const [client, server] = await startPair()
    const { held } = heldHandler(server, 'test/held')
    const reason = new ShoalError('conflict', 'the run was left')
    const early = AbortSignal.abort(reason)
    await expect(
      client.rpc.call(server.peerId, 'test/held', Uint8Array.of(1), { signal: early }),
    ).rejects.toBe(reason)
    const late = new AbortController()
    const call = client.rpc.call(server.peerId, 'test/held', Uint8Array.of(2), {
      signal: late.signal,
    })
    await until(() => held.includes(2))
    late.abort(reason)
    await expect(call).rejects.toBe(reason)
  })

  test('has its reply written where the caller wants it, when it fits', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/echo', async (request) => request)
    const request = new Uint8Array(300_000).map((_, index) => index % 253)
    const into = new Uint8Array(400_000)
    for (let time = 0; time < 3; time++) {
      const reply = await client.rpc.call(server.peerId, 'test/echo', request, { into })
      expect(reply.buffer).toBe(into.buffer)
      expect(reply).toEqual(request)
    }
    const small = new Uint8Array(200_000)
    const reply = await client.rpc.call(server.peerId, 'test/echo', request, { into: small })
    expect(reply).toEqual(request)
    expect(small.every((byte) => byte === 0)).toBe(true)
  })

  test('longer than a message is not sent', async () => {
    const [client, server] = await startPair()
    const request = new Uint8Array(LIMITS.rpcMessageBytes + 1)
    await expect(client.rpc.call(server.peerId, 'test/echo', request)).rejects.toThrow(
      fault('limit_exceeded'),
    )
  })

  test.each(['not a peer id', 'QmXoypizjW3WknFiJnKLwHCnL72vedxjQkDDP1mXWo6uco'])(
    'to %j finds nobody',
    async (peer) => {
      const client = await startMemoryNetwork()
      await expect(client.rpc.call(peer, 'test/echo', bytes(''))).rejects.toThrow(
        fault('peer_unreachable'),
      )
      await expect(client.rpc.call(client.peerId, 'test/echo', bytes(''))).rejects.toThrow(
        fault('peer_unreachable'),
      )
    },
  )
})

describe('when the other side goes', () => {
  test('its calls fail at once, and work again when it is back', async () => {
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const first = await startMemoryNetwork({ identity, listen })
    const client = await startMemoryNetwork()
    await client.connect(addressOf(first))
    const { held } = heldHandler(first, 'test/held')
    const call = client.rpc.call(first.peerId, 'test/held', Uint8Array.of(1))
    const failed = expect(call).rejects.toThrow(fault('peer_unreachable'))
    await until(() => held.length === 1)
    await first.stop()
    await failed
    await until(() => client.connectedPeers().length === 0)
    await expect(client.rpc.call(first.peerId, 'test/held', Uint8Array.of(1))).rejects.toThrow(
      fault('peer_unreachable'),
    )

    const second = await startMemoryNetwork({ identity, listen })
    second.rpc.handle('test/held', async (request) => request)
    expect(await client.rpc.call(second.peerId, 'test/held', Uint8Array.of(7))).toEqual(
      Uint8Array.of(7),
    )
  })

  test('the handler is told', async () => {
    const [client, server] = await startPair()
    let aborted = false
    server.rpc.handle('test/long', (request, { signal }) => {
      signal.addEventListener('abort', () => {
        aborted = true
      })
      return new Promise(() => {})
    })
    const call = client.rpc.call(server.peerId, 'test/long', bytes(''))
    const failed = expect(call).rejects.toThrow(fault('aborted'))
    await until(() => server.links().length === 1)
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(aborted).toBe(false)
    await client.stop()
    await failed
    await until(() => aborted)
  })

  test('or this node: nothing is left waiting', async () => {
    const [client, server] = await startPair()
    const { held } = heldHandler(server, 'test/held')
    const call = client.rpc.call(server.peerId, 'test/held', Uint8Array.of(1))
    const failed = expect(call).rejects.toThrow(fault('aborted'))
    await until(() => held.length === 1)
    await client.stop()
    await failed
    await expect(client.rpc.call(server.peerId, 'test/held', bytes(''))).rejects.toThrow(
      fault('aborted'),
    )
  })
})

describe('handlers', () => {
  test('have distinct, well-formed names', async () => {
    const network = await startMemoryNetwork()
    network.rpc.handle('test/echo', async (request) => request)
    expect(() => network.rpc.handle('test/echo', async (request) => request)).toThrow(
      fault('internal'),
    )
    for (const name of ['', 'Upper', 'a b', 'x'.repeat(LIMITS.rpcMethodLength + 1)]) {
      expect(() => network.rpc.handle(name, async (request) => request)).toThrow(fault('internal'))
    }
  })

  test('that throw at once are answered like those that reject', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/throws', () => {
      throw new ShoalError('refused', 'no')
    })
    await expect(client.rpc.call(server.peerId, 'test/throws', bytes(''))).rejects.toThrow(
      fault('refused', 'no'),
    )
  })

  test('leave nothing behind: thousands of calls keep no listener and no timer', async () => {
    const [client, server] = await startPair()
    server.rpc.handle('test/echo', async (request) => request)
    const warnings: unknown[] = []
    const onWarning = (warning: unknown): void => void warnings.push(warning)
    process.on('warning', onWarning)
    onTestFinished(() => void process.off('warning', onWarning))
    const { signal } = new AbortController()
    const timers = (): number =>
      process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length
    await client.rpc.call(server.peerId, 'test/echo', bytes('x'), { signal })
    const before = timers()
    for (let round = 0; round < 40; round++) {
      await Promise.all(
        Array.from({ length: 50 }, () =>
          client.rpc.call(server.peerId, 'test/echo', bytes('x'), { signal }),
        ),
      )
    }
    // libp2p has some of its own; two of each call's would be 4000.
    expect(timers()).toBeLessThan(before + 100)
    expect(warnings).toEqual([])
  })
})
