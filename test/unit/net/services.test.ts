import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock, type Clock } from '../../../src/clock.ts'
import { ShoalError } from '../../../src/errors.ts'
import { DEADLINES, LIMITS } from '../../../src/limits.ts'
import type { Network } from '../../../src/net/network.ts'
import { createServices } from '../../../src/net/services.ts'
import type { Services } from '../../../src/net/services.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { createManualClock, settle } from '../../manual-clock.ts'
import { startPair } from './memory-network.ts'

interface Pair {
  client: Network
  server: Network
  calling: Services
  serving: Services
}

async function startServices(clock: Clock = systemClock): Promise<Pair> {
  const [client, server] = await startPair()
  const calling = createServices({ ...client, clock: systemClock })
  const serving = createServices({ ...server, clock })
  onTestFinished(() => {
    calling.close()
    serving.close()
  })
  return { client, server, calling, serving }
}

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const signal = new AbortController().signal

async function call(
  { server, calling }: Pick<Pair, 'server' | 'calling'>,
  service: string,
  request = bytes(''),
): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of await calling.call(server.peerId, service, request, { signal })) {
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

describe('a service', () => {
  test('answers who calls', async () => {
    const pair = await startServices()
    pair.serving.serve('echo', async (request, { peer }) =>
      Buffer.concat([bytes(`${peer}: `), request]),
    )
    expect(String(await call(pair, 'echo', bytes('hello')))).toBe(`${pair.client.peerId}: hello`)
    const largest = new Uint8Array(LIMITS.blobBytes).fill(7)
    pair.serving.serve('size', async (request) => bytes(String(request.length)))
    expect(String(await call(pair, 'size', largest))).toBe(String(LIMITS.blobBytes))
  })

  test('streams its reply, no faster than it is read', async () => {
    const pair = await startServices()
    let made = 0
    pair.serving.serve('count', async () =>
      (async function* () {
        for (; made < 1000; made++) yield bytes(`${made} `)
      })(),
    )
    const { server, calling } = pair
    const reply = await calling.call(server.peerId, 'count', bytes(''), { signal })
    const read: string[] = []
    for await (const piece of reply) {
      read.push(Buffer.from(piece).toString())
      expect(made).toBeLessThanOrEqual(read.length + 1)
      if (read.length === 5) break
    }
    expect(read).toEqual(['0 ', '1 ', '2 ', '3 ', '4 '])
  })

  test('sends more than one message in pieces', async () => {
    const pair = await startServices()
    const large = new Uint8Array(2.5 * LIMITS.blobBytes).map((_, index) => index % 251)
    pair.serving.serve('large', async () => large)
    expect((await call(pair, 'large')).equals(large)).toBe(true)
    pair.serving.serve('nothing', async () => (async function* () {})())
    expect(await call(pair, 'nothing')).toHaveLength(0)
  })

  test('tells its fault, at once or in the middle', async () => {
    const pair = await startServices()
    pair.serving.serve('no', async () => {
      throw new ShoalError('refused', 'not today')
    })
    await expect(call(pair, 'no')).rejects.toMatchObject({ code: 'refused', message: 'not today' })
    pair.serving.serve('half', async () =>
      (async function* () {
        yield bytes('half')
        throw new ShoalError('engine_failed', 'broken')
      })(),
    )
    await expect(call(pair, 'half')).rejects.toMatchObject({ code: 'engine_failed' })
    await expect(call(pair, 'unknown')).rejects.toMatchObject({ code: 'refused' })
    const large = call(pair, 'no', new Uint8Array(LIMITS.blobBytes + 1))
    await expect(large).rejects.toMatchObject({ code: 'body_too_large' })
  })

  test('of this node itself answers alike, with the same limits', async () => {
    const clock = createManualClock()
    const { server, serving } = await startServices(clock)
    const own = { server, calling: serving }
    serving.serve('echo', async (request, { peer }) => Buffer.concat([bytes(`${peer}: `), request]))
    expect(String(await call(own, 'echo', bytes('hello')))).toBe(`${server.peerId}: hello`)
    const large = new Uint8Array(2.5 * LIMITS.blobBytes).map((_, index) => index % 251)
    serving.serve('large', async () => large)
    expect((await call(own, 'large')).equals(large)).toBe(true)
    await expect(call(own, 'unknown')).rejects.toMatchObject({ code: 'refused' })
    const tooLarge = call(own, 'echo', new Uint8Array(LIMITS.blobBytes + 1))
    await expect(tooLarge).rejects.toMatchObject({ code: 'body_too_large' })
    serving.serve('never', () => new Promise(() => {}))
    const outcome = expect(call(own, 'never')).rejects.toMatchObject({ code: 'timeout' })
    await clock.advance(DEADLINES.rpcHandlerMs)
    await outcome
  })

  test('has one handler, a plain name, and goes when it is removed', async () => {
    const { serving, ...pair } = await startServices()
    const remove = serving.serve('one', async () => bytes('1'))
    expect(() => serving.serve('one', async () => bytes('2'))).toThrow('served here already')
    for (const name of ['', 'A', '/x', 'x'.repeat(65), 'ä']) {
      expect(() => serving.serve(name, async () => bytes(''))).toThrow('no name of a service')
    }
    remove()
    await expect(call(pair, 'one')).rejects.toMatchObject({ code: 'refused' })
    for (let index = 0; index < LIMITS.services; index++) {
      serving.serve(`s${index}`, async () => bytes(''))
    }
    expect(() => serving.serve('more', async () => bytes(''))).toThrow('are served here already')
  })
})

describe('a caller that does not keep the rules', () => {
  const ask = (pair: Pair, method: string, message: unknown): Promise<Uint8Array> =>
    pair.client.rpc.call(pair.server.peerId, method, encodeCbor(message))

  test('gets no piece of a reply that is not its own, nor one twice', async () => {
    const pair = await startServices()
    pair.serving.serve('count', async () =>
      (async function* () {
        for (let n = 0; n < 10; n++) yield bytes(String(n))
      })(),
    )
    await ask(pair, 'service/call', { service: 'count', request: bytes('') })
    await ask(pair, 'service/next', { stream: 0, index: 1 })
    for (const message of [
      { stream: 0, index: 1 },
      { stream: 0, index: 3 },
      { stream: 1, index: 1 },
    ]) {
      await expect(ask(pair, 'service/next', message)).rejects.toMatchObject({ code: 'not_found' })
    }
    await ask(pair, 'service/next', { stream: 0, index: 2 })
  })

  test('and reads a reply no further: its producer is told, and there is room again', async () => {
    const clock = createManualClock()
    const pair = await startServices(clock)
    let ended = 0
    pair.serving.serve('endless', async () =>
      (async function* () {
        try {
          for (;;) yield bytes('more')
        } finally {
          ended++
        }
      })(),
    )
    const message = { service: 'endless', request: bytes('') }
    await ask(pair, 'service/call', message)
    await ask(pair, 'service/call', message)
    await clock.advance(DEADLINES.serviceIdleMs - 1)
    await ask(pair, 'service/next', { stream: 1, index: 1 })
    await clock.advance(1)
    expect(ended).toBe(1)
    const dropped = ask(pair, 'service/next', { stream: 0, index: 1 })
    await expect(dropped).rejects.toMatchObject({ code: 'not_found' })
    await clock.advance(DEADLINES.serviceIdleMs)
    expect(ended).toBe(2)
  })

  test('and reads a hundred short replies: none leaves anything behind', async () => {
    let sleepers = 0
    const manual = createManualClock()
    const clock: Clock = {
      ...manual,
      sleep: (ms, until) => {
        sleepers++
        return manual.sleep(ms, until).finally(() => sleepers--)
      },
    }
    const pair = await startServices(clock)
    pair.serving.serve('short', async () =>
      (async function* () {
        yield bytes('1')
        yield bytes('2')
      })(),
    )
    for (let n = 0; n < 100; n++) await call(pair, 'short')
    await settle()
    expect(sleepers).toBe(0)
  })

  test('sends nonsense in vain', async () => {
    const pair = await startServices()
    for (const message of [{}, { service: 'A B', request: bytes('') }, { service: 'x' }]) {
      const asked = ask(pair, 'service/call', message)
      await expect(asked).rejects.toMatchObject({ code: 'message_invalid' })
    }
  })

  test('begins no more replies than there is room for', async () => {
    const pair = await startServices()
    pair.serving.serve('endless', async () =>
      (async function* () {
        for (;;) yield bytes('more')
      })(),
    )
    const message = { service: 'endless', request: bytes('') }
    for (let n = 0; n < LIMITS.serviceStreams; n++) await ask(pair, 'service/call', message)
    const refused = ask(pair, 'service/call', message)
    await expect(refused).rejects.toMatchObject({ code: 'limit_exceeded' })
  })
})
