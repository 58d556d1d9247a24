import * as fc from 'fast-check'
import { pipe } from 'it-pipe'
import { Uint8ArrayList } from 'uint8arraylist'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  createFrameDecoder,
  encodeFrames,
  FRAME_HEADER_BYTES,
  frameBytes,
  isMethodName,
} from '../../../src/net/frame.ts'
import type { Frame } from '../../../src/net/frame.ts'
import { markExclusive } from '../../../src/net/received-memory.ts'

const invalid = expect.objectContaining({ code: 'message_invalid' })

async function* pieces(bytes: Uint8Array, cuts: readonly number[]): AsyncGenerator<Uint8Array> {
  let from = 0
  for (const cut of [...cuts.map((c) => c % (bytes.length + 1)), bytes.length].sort(
    (a, b) => a - b,
  )) {
    yield bytes.subarray(from, cut)
    from = cut
  }
}

async function decodeAll(source: AsyncIterable<Uint8Array>): Promise<Frame[]> {
  const frames: Frame[] = []
  await pipe(source, createFrameDecoder().decode, async (decoded) => {
    for await (const batch of decoded) frames.push(...batch)
  })
  return frames
}

function bytesOf(frames: readonly Frame[]): Uint8Array {
  return encodeFrames(frames).subarray()
}

function header(length: number, kind: number, methodBytes: number): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, length)
  view.setUint32(4, 7)
  view.setUint8(8, kind)
  view.setUint8(9, methodBytes)
  return bytes
}

const method = fc.stringMatching(/^[a-z][a-z0-9/-]{0,20}$/)
const payload = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  // Joined with its neighbours, or handed on as it is.
  fc.integer({ min: 8000, max: 8400 }).map((length) => new Uint8Array(length).fill(length)),
)
const id = fc.nat(2 ** 32 - 1)
const frameArbitrary: fc.Arbitrary<Frame> = fc.oneof(
  fc.record({ kind: fc.constant('request' as const), id, method, payload }),
  fc.record({
    kind: fc.constantFrom('reply' as const, 'fault'),
    id,
    method: fc.constant(''),
    payload,
  }),
)

describe('frames', () => {
  test('survive any cut of the byte stream', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(frameArbitrary, { maxLength: 6 }),
        fc.array(fc.nat(20_000), { maxLength: 12 }),
        async (frames, cuts) => {
          expect(await decodeAll(pieces(bytesOf(frames), cuts))).toEqual(frames)
        },
      ),
    )
  })

  test('of the largest size pass byte for byte', async () => {
    const largest = new Uint8Array(LIMITS.rpcMessageBytes).map((_, index) => index % 251)
    const frame: Frame = { kind: 'reply', id: 2 ** 32 - 1, method: '', payload: largest }
    const bytes = bytesOf([frame])
    const cuts = Array.from({ length: 16 }, (_, index) => index * 65_536)
    const [decoded] = await decodeAll(pieces(bytes, cuts))
    expect(decoded?.payload.length).toBe(LIMITS.rpcMessageBytes)
    expect(decoded?.payload.every((byte, index) => byte === largest[index])).toBe(true)
  })

  test('do not share memory with what they arrived in', async () => {
    const bytes = bytesOf([{ kind: 'reply', id: 1, method: '', payload: Uint8Array.of(1, 2) }])
    const [frame] = await decodeAll(pieces(bytes, []))
    bytes.fill(0)
    expect(frame?.payload).toEqual(Uint8Array.of(1, 2))
  })

  test('in lists of pieces are read like those in one', async () => {
    const frames: Frame[] = [
      { kind: 'request', id: 1, method: 'a/b', payload: new Uint8Array(100_000).fill(3) },
      { kind: 'request', id: 2, method: 'a/c', payload: new Uint8Array(20).fill(4) },
    ]
    const bytes = bytesOf(frames)
    for (const size of [1000, 16_384, 99_999]) {
      const list = new Uint8ArrayList()
      for (let at = 0; at < bytes.length; at += size) list.append(bytes.slice(at, at + size))
      const decoded: Frame[] = []
      async function* once(): AsyncGenerator<Uint8ArrayList> {
        yield list
      }
      for await (const batch of createFrameDecoder().decode(once())) decoded.push(...batch)
      expect(decoded).toEqual(frames)
    }
  })

  test('that announce much and bring little take little memory', async () => {
    const bytes = new Uint8Array([...header(LIMITS.rpcMessageBytes, 2, 0), 1, 2, 3])
    const before = process.memoryUsage().arrayBuffers
    const decoders = Array.from({ length: 200 }, () => createFrameDecoder())
    for (const decoder of decoders) {
      async function* once(): AsyncGenerator<Uint8Array> {
        yield bytes
      }
      for await (const frames of decoder.decode(once())) expect(frames).toEqual([])
      expect(decoder.partial).toBe(true)
    }
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(10 << 20)
  })

  describe('with a destination', () => {
    const long = new Uint8Array(100_000).map((_, index) => index % 251)
    const reply: Frame = { kind: 'reply', id: 9, method: '', payload: long }
    const cuts = [10_000, 50_000]

    async function decodeInto(frames: readonly Frame[], into: Uint8Array): Promise<Frame[]> {
      const decoder = createFrameDecoder((replyId, bytes) =>
        replyId === 9 && bytes <= into.length ? into : undefined,
      )
      const decoded: Frame[] = []
      for await (const batch of decoder.decode(pieces(bytesOf(frames), cuts))) {
        decoded.push(...batch)
      }
      return decoded
    }

    test('a reply is written there', async () => {
      const into = new Uint8Array(120_000)
      const [decoded] = await decodeInto([reply], into)
      expect(decoded?.payload.buffer).toBe(into.buffer)
      expect(decoded).toEqual(reply)
    })

    test('a reply that is too long for it, or another, is not', async () => {
      const small = new Uint8Array(99_999)
      expect(await decodeInto([reply], small)).toEqual([reply])
      expect(small.every((byte) => byte === 0)).toBe(true)
      const into = new Uint8Array(120_000)
      const others: Frame[] = [
        { ...reply, id: 8 },
        { ...reply, kind: 'fault' },
        { ...reply, kind: 'request', method: 'a' },
      ]
      expect(await decodeInto(others, into)).toEqual(others)
      expect(into.every((byte) => byte === 0)).toBe(true)
    })

    test('a reply under way leaves it when told so, and is still whole', async () => {
      const into = new Uint8Array(120_000)
      const decoder = createFrameDecoder(() => into)
      const bytes = bytesOf([reply])
      async function* source(): AsyncGenerator<Uint8Array> {
        yield bytes.subarray(0, 50_000)
        decoder.leaveDestination(8)
        yield bytes.subarray(50_000, 60_000)
        decoder.leaveDestination(9)
        into.fill(0)
        yield bytes.subarray(60_000)
      }
      const decoded: Frame[] = []
      for await (const batch of decoder.decode(source())) decoded.push(...batch)
      expect(decoded).toEqual([reply])
      expect(into.every((byte) => byte === 0)).toBe(true)
    })
  })

  test('free the memory that they arrived in where it is theirs alone', async () => {
    const frame: Frame = {
      kind: 'reply',
      id: 1,
      method: '',
      payload: new Uint8Array(50_000).fill(5),
    }
    const bytes = bytesOf([frame, frame])
    const chunks = Array.from({ length: 7 }, (_, index) =>
      bytes.slice(16_384 * index, 16_384 * (index + 1)),
    )
    for (const chunk of chunks) markExclusive(chunk)
    async function* source(): AsyncGenerator<Uint8Array> {
      yield* chunks
    }
    const decoded: Frame[] = []
    for await (const batch of createFrameDecoder().decode(source())) decoded.push(...batch)
    expect(decoded).toEqual([frame, frame])
    // The first begins with a header, the fourth ends one frame and begins the other, the last is small.
    expect(chunks.map(({ length }) => length > 0)).toEqual([
      true,
      false,
      false,
      true,
      false,
      false,
      true,
    ])
  })

  test.each([
    ['one byte too long', header(LIMITS.rpcMessageBytes + 1, 2, 0)],
    ['4 GiB long', header(2 ** 32 - 1, 1, 4)],
    ['of kind 0', header(0, 0, 0)],
    ['of kind 4', header(0, 4, 0)],
    ['a reply with a method', header(0, 2, 3)],
    ['a request with too long a method', header(0, 1, LIMITS.rpcMethodLength + 1)],
  ])('refuse a header %s as soon as it is here', async (_name, bytes) => {
    // The source never ends: a decoder that waited for the body would hang.
    async function* endless(): AsyncGenerator<Uint8Array> {
      yield bytes
      await new Promise(() => {})
    }
    await expect(decodeAll(endless())).rejects.toThrow(invalid)
  })

  test.each(['', 'A', '9', 'a b', 'ä', 'a\n', '/a'])('refuse the method %j', async (name) => {
    const ascii = new TextEncoder().encode(name)
    const bytes = new Uint8Array([...header(0, 1, ascii.length), ...ascii])
    await expect(decodeAll(pieces(bytes, []))).rejects.toThrow(invalid)
    expect(isMethodName(name)).toBe(false)
  })

  test('garbage yields frames or message_invalid, and never more bytes than came in', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ maxLength: 400 }),
        fc.array(fc.nat(400), { maxLength: 8 }),
        async (bytes, cuts) => {
          const decoder = createFrameDecoder()
          let length = 0
          try {
            for await (const frames of decoder.decode(pieces(bytes, cuts))) {
              for (const frame of frames) length += frameBytes(frame)
            }
            expect(decoder.bytesReceived).toBe(bytes.length)
            expect(decoder.partial).toBe(length < bytes.length)
          } catch (thrown) {
            expect(thrown).toMatchObject({ code: 'message_invalid' })
          }
          expect(length).toBeLessThanOrEqual(bytes.length)
        },
      ),
      { numRuns: 500 },
    )
  })

  test('cannot be made larger than the limit', () => {
    const tooLong = new Uint8Array(LIMITS.rpcMessageBytes + 1)
    expect(() => encodeFrames([{ kind: 'reply', id: 1, method: '', payload: tooLong }])).toThrow(
      expect.objectContaining({ code: 'limit_exceeded' }),
    )
  })
})
