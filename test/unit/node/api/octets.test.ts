import { once } from 'node:events'
import { createServer, get, type IncomingMessage } from 'node:http'
import { expect, onTestFinished, test } from 'vitest'
import { flowing, sendOctets } from '../../../../node/api/octets.ts'
import { DEADLINES } from '../../../../src/limits.ts'
import { createManualClock, settle, type ManualClock } from '../../../manual-clock.ts'

const piece = (value: number): Uint8Array => Uint8Array.of(value)

test('pieces come as they are, however long their reader takes', async () => {
  const clock = createManualClock()
  async function* source(): AsyncGenerator<Uint8Array, void> {
    for (let value = 0; value < 5; value++) {
      await clock.sleep(DEADLINES.apiStallMs - 1)
      yield piece(value)
    }
  }
  const read: number[] = []
  const reading = (async () => {
    for await (const [value] of flowing(source(), clock)) {
      read.push(value ?? -1)
      await clock.sleep(10 * DEADLINES.apiStallMs)
    }
  })()
  await clock.advance(60 * DEADLINES.apiStallMs)
  await reading
  expect(read).toEqual([0, 1, 2, 3, 4])
})

test('a source that gives nothing for too long is left, and told so', async () => {
  const clock = createManualClock()
  const more = Promise.withResolvers<Uint8Array>()
  let isOver = false
  async function* source(): AsyncGenerator<Uint8Array, void> {
    try {
      yield piece(1)
      yield await more.promise
      yield piece(3)
    } finally {
      isOver = true
    }
  }
  const pieces = flowing(source(), clock)
  expect((await pieces.next()).value).toEqual(piece(1))
  const next = pieces.next()
  const outcome = expect(next).rejects.toMatchObject({
    code: 'timeout',
    message: 'no byte of the body has come for 30 s',
  })
  await clock.advance(DEADLINES.apiStallMs - 1)
  await clock.advance(1)
  await outcome
  more.resolve(piece(2))
  await settle()
  expect(isOver).toBe(true)
})

test('what the source throws is thrown, and a reader that stops ends the source', async () => {
  const clock = createManualClock()
  async function* broken(): AsyncGenerator<Uint8Array, void> {
    yield piece(1)
    throw new Error('broken')
  }
  const pieces = flowing(broken(), clock)
  expect((await pieces.next()).value).toEqual(piece(1))
  await expect(pieces.next()).rejects.toThrow('broken')
  let isOver = false
  async function* endless(): AsyncGenerator<Uint8Array, void> {
    try {
      for (;;) yield piece(1)
    } finally {
      isOver = true
    }
  }
  for await (const _ of flowing(endless(), clock)) break
  await settle()
  expect(isOver).toBe(true)
})

/** An answer without an end, and what becomes of sending it. */
async function startAnswer(
  clock: ManualClock,
): Promise<{ incoming: IncomingMessage; outcome: () => unknown; sent: () => number }> {
  let sent = 0
  let outcome: unknown
  async function* endless(): AsyncGenerator<Uint8Array, void> {
    for (;;) {
      yield new Uint8Array(1 << 20)
      sent++
    }
  }
  const server = createServer((_incoming, outgoing) => {
    const { signal } = new AbortController()
    const download = { output: {}, content: endless() }
    sendOctets(outgoing, download, {}, clock, signal).catch((thrown: unknown) => (outcome = thrown))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const bound = server.address()
  const port = typeof bound === 'object' && bound !== null ? bound.port : 0
  const asked = get({ host: '127.0.0.1', port })
  asked.on('error', () => {})
  const [incoming]: IncomingMessage[] = await once(asked, 'response')
  if (incoming === undefined) throw new Error('no answer')
  incoming.on('error', () => {})
  onTestFinished(() => {
    incoming.destroy()
    server.close()
  })
  return { incoming, outcome: () => outcome, sent: () => sent }
}

test('an answer takes as long as its reader wants, who takes something now and then', async () => {
  const clock = createManualClock()
  const { incoming, outcome, sent } = await startAnswer(clock)
  for (let part = 0; part < 20; part++) {
    const before = sent()
    while (sent() < before + 8) {
      incoming.resume()
      await settle()
    }
    incoming.pause()
    await clock.advance(DEADLINES.apiStallMs - 1)
  }
  expect(outcome()).toBe(undefined)
})

test('one who takes nothing of it for too long is cut off', async () => {
  const clock = createManualClock()
  const { incoming, outcome } = await startAnswer(clock)
  incoming.pause()
  const closed = new Promise((resolve) => incoming.once('close', resolve))
  // Some of it is taken by the buffers on the way first.
  while (outcome() === undefined) await clock.advance(DEADLINES.apiStallMs)
  expect(outcome()).toMatchObject({
    code: 'timeout',
    message: 'taking a part of the answer took longer than 30000 ms',
  })
  incoming.resume()
  await closed
})
