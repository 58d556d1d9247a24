import { expect, test } from 'vitest'
import { flowing } from '../../../../node/api/octets.ts'
import { DEADLINES } from '../../../../src/limits.ts'
import { createManualClock, settle } from '../../../manual-clock.ts'

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
