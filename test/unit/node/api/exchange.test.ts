/** Blobs and services as programs use them: over HTTP, from node to node. */
import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { ApiClient } from '../../../../node/api/client.ts'
import { ROUTES } from '../../../../node/api/routes.ts'
import { systemClock } from '../../../../src/clock.ts'
import { DEADLINES, LIMITS } from '../../../../src/limits.ts'
import { createManualClock } from '../../../manual-clock.ts'
import { bytesOf, startApis, TOKEN, type Api, type LocalApis } from './local-api.ts'

let local: LocalApis
let one: Api
let two: Api
beforeAll(async () => {
  local = await startApis(2, 'exchange')
  const [first, second] = local.apis
  if (first === undefined || second === undefined) throw new Error('two nodes')
  one = first
  two = second
  await two.node.connect(one.node.status().addresses[0] ?? '')
})
afterAll(() => local.close())

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

describe('blobs', () => {
  test('are put at one node and read at another', async () => {
    const content = new Uint8Array(2 * LIMITS.blobBytes + 7).map((_, index) => index % 251)
    const put = await one.client.call(ROUTES.putBlob, {}, { body: content })
    expect(put).toMatchObject({ bytes: content.length, provided: false })
    const { cid } = put
    expect(await one.client.call(ROUTES.blobs, {})).toEqual({ blobs: [put] })
    const got = await two.client.download(ROUTES.getBlob, { cid })
    expect((await bytesOf(got.content)).equals(content)).toBe(true)
    expect(await two.client.call(ROUTES.provideBlob, { cid })).toMatchObject({ provided: true })
    await expect
      .poll(() => one.client.call(ROUTES.blobProviders, { cid }), { timeout: 45_000 })
      .toEqual({ peers: [two.node.peerId] })
    expect(await one.client.call(ROUTES.forgetBlob, { cid })).toEqual({ forgotten: cid })
    await expect(one.client.call(ROUTES.forgetBlob, { cid })).rejects.toMatchObject({
      code: 'not_found',
    })
    expect(await one.client.call(ROUTES.blobs, {})).toEqual({ blobs: [] })
  })

  test('are the same in whatever pieces they come', async () => {
    const content = new Uint8Array(3 * LIMITS.blobBytes + 1).map((_, index) => (index * 7) % 253)
    const { cid } = await one.client.call(ROUTES.putBlob, {}, { body: content })
    for (const size of [1000, 65_536, 1 << 20]) {
      const body = (async function* () {
        for (let from = 0; from < content.length; from += size) {
          yield content.subarray(from, from + size)
        }
      })()
      const chunked = await one.client.call(ROUTES.putBlob, {}, { body })
      expect(chunked).toEqual({ cid, bytes: content.length, provided: false })
    }
    await one.client.call(ROUTES.forgetBlob, { cid })
  })

  test('that are named by nonsense are refused', async () => {
    for (const cid of ['x', 'bafy', '../../etc/passwd']) {
      await expect(one.client.download(ROUTES.getBlob, { cid })).rejects.toMatchObject({
        code: 'body_invalid',
      })
    }
  })

  test('that break off, or are larger than allowed, leave nothing', async () => {
    const url = new URL(one.client.url)
    const head = [
      'PUT /v1/blobs HTTP/1.1',
      `Host: ${url.host}`,
      `Authorization: Bearer ${TOKEN}`,
      'Content-Type: application/octet-stream',
    ]
    const socket = connect(Number(url.port), url.hostname)
    socket.write([...head, 'Content-Length: 3000000', '', 'begun'].join('\r\n'))
    await new Promise((resolve) => setTimeout(resolve, 50))
    socket.destroy()
    const large = connect(Number(url.port), url.hostname)
    large.write([...head, `Content-Length: ${LIMITS.sharedBlobBytes + 1}`, '', ''].join('\r\n'))
    const answer = await new Promise<string>((resolve) =>
      large.once('data', (d) => resolve(String(d))),
    )
    expect(answer).toMatch(/^HTTP\/1.1 413 [\s\S]*"code":"body_too_large"/)
    large.destroy()
    expect(await one.client.call(ROUTES.blobs, {})).toEqual({ blobs: [] })
  })

  test('are bytes, and say so', async () => {
    const response = await fetch(`${one.client.url}/v1/blobs`, {
      method: 'PUT',
      headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' },
      body: '{}',
    })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({
      code: 'body_invalid',
      detail: 'send the header Content-Type: application/octet-stream',
    })
  })
})

describe('services', () => {
  /** A program that serves: takes requests until told to stop. */
  async function serve(
    client: ApiClient,
    service: string,
    answer: (request: Buffer, peer: string, id: string) => Promise<unknown>,
    signal: AbortSignal,
  ): Promise<void> {
    while (!signal.aborted) {
      const next = await client
        .download(ROUTES.serviceRequest, { service, waitMs: 2_000 }, { signal })
        .catch(() => undefined)
      if (next?.output === undefined) continue
      await answer(await bytesOf(next.content), next.output.peer, next.output.requestId)
    }
  }

  async function call(service: string, body: Uint8Array): Promise<Buffer> {
    const input = { peer: one.node.peerId, service }
    const { content } = await two.client.download(ROUTES.callService, input, { body })
    return bytesOf(content)
  }

  /** Until the service is offered. */
  async function firstCall(service: string, body: Uint8Array): Promise<Buffer> {
    for (;;) {
      try {
        return await call(service, body)
      } catch {
        await systemClock.sleep(20)
      }
    }
  }

  test('are answered by a program beside the other node', async () => {
    const stop = new AbortController()
    const serving = serve(
      one.client,
      'shout',
      async (request, peer, id) => {
        expect(peer).toBe(two.node.peerId)
        const body = bytes(String(request).toUpperCase())
        await one.client.call(ROUTES.serviceReply, { service: 'shout', id }, { body })
      },
      stop.signal,
    )
    expect(String(await firstCall('shout', bytes('hello')))).toBe('HELLO')
    const many = await Promise.all(['a', 'b', 'c'].map((text) => call('shout', bytes(text))))
    expect(many.map(String)).toEqual(['A', 'B', 'C'])
    stop.abort()
    await serving
  })

  test('are answered to programs beside the same node too', async () => {
    const remove = one.node.services.serve('own', async (request, { peer }) =>
      bytes(`${peer} ${String(Buffer.from(request))}`),
    )
    const input = { peer: one.node.peerId, service: 'own' }
    const { content } = await one.client.download(ROUTES.callService, input, { body: bytes('hi') })
    expect(String(await bytesOf(content))).toBe(`${one.node.peerId} hi`)
    remove()
  })

  test('stream a reply while it is made', async () => {
    const stop = new AbortController()
    const go = Promise.withResolvers<void>()
    const serving = serve(
      one.client,
      'slow',
      async (_request, _peer, id) => {
        const body = (async function* () {
          yield bytes('first ')
          await go.promise
          yield bytes('second')
        })()
        await one.client.call(ROUTES.serviceReply, { service: 'slow', id }, { body })
      },
      stop.signal,
    )
    const input = { peer: one.node.peerId, service: 'slow' }
    await expect
      .poll(() =>
        two.client.download(ROUTES.callService, input).then(
          async ({ content }) => {
            const reader = content?.getReader()
            const first = await reader?.read()
            go.resolve()
            const second = await reader?.read()
            return [first, second].map((read) => String(Buffer.from(read?.value ?? [])))
          },
          () => undefined,
        ),
      )
      .toEqual(['first ', 'second'])
    stop.abort()
    await serving
  })

  test('stream a reply for longer than a call may take to begin', async () => {
    const clock = createManualClock()
    const slow = await startApis(1, 'exchange-slow', clock)
    onTestFinished(() => slow.close())
    const { node, client } = slow.api
    let go = Promise.withResolvers<void>()
    node.services.serve('slow', async () =>
      (async function* () {
        for (let part = 0; part < 3; part++) {
          yield bytes(`part ${part}`)
          await go.promise
          go = Promise.withResolvers()
        }
      })(),
    )
    const input = { peer: node.peerId, service: 'slow' }
    const { content } = await client.download(ROUTES.callService, input)
    const reader = content?.getReader()
    for (let part = 0; part < 3; part++) {
      const read = await reader?.read()
      expect(String(Buffer.from(read?.value ?? []))).toBe(`part ${part}`)
      await clock.advance(DEADLINES.apiLongMs - 1)
      go.resolve()
    }
    expect(await reader?.read()).toMatchObject({ done: true })
  })

  test('may refuse, and an answer counts once', async () => {
    const service = 'picky'
    const asked = one.client.download(ROUTES.serviceRequest, { service })
    const calling = firstCallOutcome(service)
    const { output } = await asked
    const id = output?.requestId ?? ''
    const message = 'not for you'
    await one.client.call(ROUTES.serviceRefusal, { service, id, message })
    expect(await calling).toMatchObject({ code: 'refused', message })
    const late = one.client.call(ROUTES.serviceReply, { service, id }, { body: bytes('x') })
    await expect(late).rejects.toMatchObject({ code: 'not_found' })
  })

  async function firstCallOutcome(service: string): Promise<unknown> {
    for (;;) {
      const outcome = await call(service, bytes('')).catch((thrown: unknown) => thrown)
      if (!String(outcome).includes('offers no service')) return outcome
      await systemClock.sleep(20)
    }
  }

  test('nobody has asked for are not offered', async () => {
    await expect(call('nothing', bytes(''))).rejects.toMatchObject({ code: 'refused' })
    const { output, content } = await one.client.download(ROUTES.serviceRequest, {
      service: 'quiet',
      waitMs: 0,
    })
    expect({ output, content }).toEqual({ output: undefined, content: undefined })
  })
})
