import * as fc from 'fast-check'
import { pipe } from 'it-pipe'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import {
  createFrameDecoder,
  encodeFrame,
  FRAME_HEADER_BYTES,
  isMethodName,
} from '../../../src/net/frame.ts'
import type { Frame } from '../../../src/net/frame.ts'

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
    for await (const frame of decoded) frames.push(frame)
  })
  return frames
}

function bytesOf(frames: readonly Frame[]): Uint8Array {
  const all = frames.map((frame) => encodeFrame(frame).subarray())
  const bytes = new Uint8Array(all.reduce((sum, part) => sum + part.length, 0))
  let offset = 0
  for (const part of all) {
    bytes.set(part, offset)
    offset += part.length
  }
  return bytes
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
const payload = fc.uint8Array({ maxLength: 300 })
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
        fc.array(fc.nat(2000), { maxLength: 12 }),
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
            for await (const frame of decoder.decode(pieces(bytes, cuts))) {
              length += FRAME_HEADER_BYTES + frame.method.length + frame.payload.length
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
    expect(() => encodeFrame({ kind: 'reply', id: 1, method: '', payload: tooLong })).toThrow(
      expect.objectContaining({ code: 'limit_exceeded' }),
    )
  })
})
