/** Every hole of a local API that web pages and other users of the machine can reach, tried. */
import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createApiClient } from '../../../../node/api/client.ts'
import type { ApiClient } from '../../../../node/api/client.ts'
import { ROUTES } from '../../../../node/api/routes.ts'
import type { Route } from '../../../../node/api/route.ts'
import { createApiServer } from '../../../../node/api/server.ts'
import type { ApiServer } from '../../../../node/api/server.ts'
import { systemClock } from '../../../../src/clock.ts'
import { LIMITS } from '../../../../src/limits.ts'
import { silentLogger } from '../../../../src/log.ts'
import { createSwarm, tinySpec } from '../../../swarm/swarm.ts'
import type { Swarm } from '../../../swarm/swarm.ts'
import { rawCall, type RawAnswer, type RawCall } from './local-api.ts'

const TOKEN = 'a'.repeat(64)
const UNKNOWN_RUN = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'

let swarm: Swarm
let server: ApiServer
let client: ApiClient
let folder: string
let shutdowns = 0

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'shoal-api-'))
  swarm = await createSwarm(1, 'api')
  const [node] = swarm.nodes
  if (node === undefined) throw new Error('no node')
  server = await createApiServer({
    node,
    token: TOKEN,
    port: 0,
    dataDir: folder,
    clock: systemClock,
    logger: silentLogger,
    shutdown: () => shutdowns++,
    heartbeatMs: 50,
  })
  client = createApiClient({ url: server.url, token: TOKEN })
})
afterAll(async () => {
  await server.close()
  await swarm.stop()
  rmSync(folder, { recursive: true, force: true })
})

const send = (call: RawCall): Promise<RawAnswer> => rawCall(server.url, call)

/** A path with something in its braces: a run that is not here, nothing that is a CID. */
function filled(path: string): string {
  return path.replace('{run}', UNKNOWN_RUN).replaceAll(/\{\w+\}/g, 'x')
}

const bearer = { authorization: `Bearer ${TOKEN}` }
const json = { 'content-type': 'application/json' }

describe('what the outside may not do', () => {
  test('call without the token, or with another one', async () => {
    for (const headers of [
      {},
      { authorization: TOKEN },
      { authorization: `Basic ${TOKEN}` },
      { authorization: 'Bearer' },
      { authorization: `Bearer ${TOKEN.slice(1)}` },
      { authorization: `Bearer ${'b'.repeat(64)}` },
    ]) {
      const answer = await send({ headers })
      expect(answer).toMatchObject({ status: 401, body: { code: 'unauthorized' } })
      expect(answer.headers['www-authenticate']).toBe('Bearer')
      expect(answer.headers['content-type']).toBe('application/problem+json')
    }
    expect(await send({ headers: bearer })).toMatchObject({ status: 200 })
  })

  test('guess the token: no answer tells how near a guess is, and none locks the owner out', async () => {
    const answers = new Set<string>()
    for (let length = 0; length < TOKEN.length; length++) {
      const guess = TOKEN.slice(0, length).padEnd(TOKEN.length, 'f')
      const { status, body } = await send({ headers: { authorization: `Bearer ${guess}` } })
      answers.add(JSON.stringify({ status, body }))
    }
    expect([...answers]).toHaveLength(1)
    expect([...answers][0]).toContain('unauthorized')
    const guesses = Array.from({ length: 500 }, (_, guess) => ({
      authorization: `Bearer ${guess}`,
    }))
    const refused = await Promise.all(guesses.map((headers) => send({ headers })))
    expect(refused.every(({ status }) => status === 401)).toBe(true)
    expect(await send({ headers: bearer })).toMatchObject({ status: 200 })
  })

  test('come by another way of HTTP: HEAD, an upgrade, two hosts, a full address, two lengths', async () => {
    expect(await send({ method: 'HEAD' })).toMatchObject({ status: 401 })
    expect(await send({ method: 'TRACE' })).toMatchObject({ status: 401 })
    const { host } = new URL(server.url)
    const raw = async (...lines: string[]): Promise<string> => {
      const socket = connect(Number(new URL(server.url).port), '127.0.0.1')
      socket.end(lines.map((line) => `${line}\r\n`).join('') + '\r\n')
      let text = ''
      for await (const piece of socket) text += String(piece)
      return text.split('\r\n')[0] ?? ''
    }
    const upgrade = ['Upgrade: websocket', 'Connection: Upgrade', 'Sec-WebSocket-Version: 13']
    expect(await raw('GET /v1/events HTTP/1.1', `Host: ${host}`, ...upgrade)).toContain(' 401 ')
    const authorization = `Authorization: Bearer ${TOKEN}`
    const get = 'GET /v1/node HTTP/1.1'
    const close = 'Connection: close'
    expect(await raw(get, `Host: ${host}`, authorization, close)).toContain(' 200 ')
    expect(await raw(get, authorization, close)).toMatch(/ 40[03] /)
    const twoHosts = await raw(get, `Host: evil.example`, `Host: ${host}`, authorization, close)
    expect(twoHosts).toMatch(/ 40[03] /)
    const full = 'GET http://evil.example/v1/node HTTP/1.1'
    expect(await raw(full, 'Host: evil.example', authorization, close)).toContain(' 403 ')
    const lengths = [
      'Content-Length: 2',
      'Transfer-Encoding: chunked',
      'Content-Type: application/json',
    ]
    const post = 'POST /v1/shutdown HTTP/1.1'
    expect(await raw(post, `Host: ${host}`, authorization, ...lengths, close)).toContain(' 400 ')
    expect(shutdowns).toBe(0)
  })

  test('pass the token in the query', async () => {
    const answer = await send({ path: `/v1/node?token=${TOKEN}` })
    expect(answer).toMatchObject({ status: 401 })
  })

  test('learn without the token which paths there are', async () => {
    expect(await send({ path: '/v1/nothing' })).toMatchObject({ status: 401 })
    expect(await send({ path: '/v1/nothing', headers: bearer })).toMatchObject({
      status: 404,
      body: { code: 'not_found' },
    })
  })

  test('come by a name that was pointed at loopback (DNS rebinding)', async () => {
    const { port } = new URL(server.url)
    for (const host of ['evil.example', `evil.example:${port}`, '127.0.0.1', `127.0.0.1:1`]) {
      const answer = await send({ headers: { ...bearer, host } })
      expect({ host, ...answer }).toMatchObject({ status: 403, body: { code: 'forbidden' } })
    }
    for (const host of [`localhost:${port}`, `LOCALHOST:${port}`, `[::1]:${port}`]) {
      expect(await send({ headers: { ...bearer, host } })).toMatchObject({ status: 200 })
    }
  })

  test('come from a web page of another site, even with the token', async () => {
    for (const origin of ['https://evil.example', 'null', 'http://127.0.0.1:1', '']) {
      const answer = await send({ headers: { ...bearer, origin } })
      expect({ origin, ...answer }).toMatchObject({ status: 403, body: { code: 'forbidden' } })
    }
    for (const site of ['cross-site', 'same-site', '']) {
      const answer = await send({ headers: { ...bearer, 'sec-fetch-site': site } })
      expect({ site, ...answer }).toMatchObject({ status: 403 })
    }
    const own = { ...bearer, origin: server.url, 'sec-fetch-site': 'same-origin' }
    expect(await send({ headers: own })).toMatchObject({ status: 200 })
    expect(await send({ headers: { ...bearer, 'sec-fetch-site': 'none' } })).toMatchObject({
      status: 200,
    })
  })

  test('read an answer from a page of another site (no CORS)', async () => {
    const preflight = await send({
      method: 'OPTIONS',
      headers: { origin: 'https://evil.example', 'access-control-request-method': 'POST' },
    })
    expect(preflight.status).toBe(403)
    const { headers } = await send({ headers: bearer })
    expect(Object.keys(headers).filter((name) => name.startsWith('access-control'))).toEqual([])
  })

  test('post what a form can send', async () => {
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
      const answer = await send({
        method: 'POST',
        path: '/v1/shutdown',
        headers: { ...bearer, 'content-type': type },
        body: '{}',
      })
      expect(answer).toMatchObject({ status: 400, body: { code: 'body_invalid' } })
    }
    const bare = await send({ method: 'POST', path: '/v1/shutdown', headers: bearer })
    expect(bare).toMatchObject({ status: 400, body: { code: 'body_invalid' } })
    expect(shutdowns).toBe(0)
  })

  test('send more than the limit, declared or not', async () => {
    const body = JSON.stringify({ address: 'x'.repeat(LIMITS.apiBodyBytes) })
    const call = { method: 'POST', path: '/v1/peers', body }
    const declared = { ...bearer, ...json, 'content-length': String(body.length) }
    const chunked = { ...bearer, ...json, 'transfer-encoding': 'chunked' }
    for (const headers of [declared, chunked]) {
      expect(await send({ ...call, headers })).toMatchObject({
        status: 413,
        body: { code: 'body_too_large' },
      })
    }
  })

  test('send headers without end', async () => {
    const headers = { ...bearer, 'x-long': 'x'.repeat(32 << 10) }
    const answer = await send({ headers }).catch((error: unknown) => error)
    expect(answer).not.toMatchObject({ status: 200 })
  })

  test('call with a body that is not an object, or has unknown or missing fields', async () => {
    for (const body of ['', '[]', '"x"', '{', 'null', '{}', '{"address":1}', '{"adress":"x"}']) {
      const headers = { ...bearer, ...json }
      const answer = await send({ method: 'POST', path: '/v1/peers', headers, body })
      expect({ sent: body, ...answer }).toMatchObject({
        status: 400,
        body: { code: 'body_invalid' },
      })
    }
    const misspelt = await send({ path: '/v1/runs?discovr=true', headers: bearer })
    expect(misspelt.body).toMatchObject({
      code: 'body_invalid',
      detail: "GET /v1/runs: unknown key 'discovr', did you mean 'discover'?",
    })
  })

  test('leave out a header, or name what is no peer, without being told', async () => {
    const octets = { ...bearer, 'content-type': 'application/octet-stream' }
    const noRound = await send({ method: 'POST', path: '/v1/average/g', headers: octets })
    expect(noRound.body).toMatchObject({
      code: 'body_invalid',
      detail: "POST /v1/average/{group}: 'round' is missing",
    })
    const noPeer = await send({ method: 'POST', path: '/v1/peers/zzz/call/x', headers: octets })
    expect(noPeer.body).toMatchObject({
      code: 'body_invalid',
      detail: expect.stringContaining("'peer': is no peer id such as 12D3KooW"),
    })
  })

  test('rename in the body what the path names', async () => {
    const answer = await send({
      method: 'POST',
      path: `/v1/runs/${UNKNOWN_RUN}/leave`,
      headers: { ...bearer, ...json },
      body: JSON.stringify({ run: 'another' }),
    })
    expect(answer.body).toMatchObject({ code: 'run_unknown' })
    expect(JSON.stringify(answer.body)).toContain(UNKNOWN_RUN)
  })

  test('name data by a path that depends on where the daemon was started', async () => {
    const spec = tinySpec({ data: 'README.md' })
    await expect(client.call(ROUTES.createRun, { spec })).rejects.toMatchObject({
      code: 'data_unreadable',
    })
  })

  test('listen elsewhere than on loopback', () => {
    expect(server.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
  })
})

describe('the routes', () => {
  test('need the token, all but those that tell nothing of this node', async () => {
    const routes: Route[] = Object.values(ROUTES)
    for (const { method, path } of routes.filter(({ open }) => open !== true)) {
      const answer = await send({ method, path: filled(path), headers: json })
      expect({ path, ...answer }).toMatchObject({ status: 401 })
    }
    const open = routes.filter((route) => route.open === true).map(({ path }) => path)
    expect(open).toEqual(['/healthz', '/', '/dashboard/{file}', '/v1/dashboard-token'])
    expect(await send({ path: '/healthz' })).toMatchObject({ status: 200, body: { ok: true } })
    expect(await send({ path: '/healthz', headers: { host: 'evil.example' } })).toMatchObject({
      status: 403,
    })
  })

  test('of the dashboard give its own files, and no others', async () => {
    const page = await send({ path: '/' })
    expect(page).toMatchObject({
      status: 200,
      headers: { 'content-type': 'text/html; charset=utf-8' },
    })
    expect(JSON.stringify(page.body)).not.toContain(TOKEN)
    expect(await send({ path: '/dashboard/main.js' })).toMatchObject({ status: 200 })
    const outside = ['..%2fclient.ts', '..%2f..%2f..%2fetc%2fpasswd', 'main.js%00', '']
    for (const name of [...outside, 'main.ts', '/etc/passwd', '../api/client.ts']) {
      const { status } = await send({ path: `/dashboard/${name}` })
      expect({ name, status: [401, 404].includes(status) }).toEqual({ name, status: true })
    }
  })

  test('allow pages of this node its own scripts only, no frames, no caches, on every answer', async () => {
    for (const path of ['/', '/v1/node', '/nothing', '/dashboard/main.js', '/metrics']) {
      const { headers } = await send({ path, headers: path === '/v1/node' ? bearer : {} })
      expect(headers).toMatchObject({
        'x-content-type-options': 'nosniff',
        'referrer-policy': 'no-referrer',
        'cache-control': 'no-store',
        'cross-origin-resource-policy': 'same-origin',
      })
      const policy = headers['content-security-policy']
      expect(policy).toContain("default-src 'none'")
      expect(policy).toContain("script-src 'self'")
      expect(policy).toContain("frame-ancestors 'none'")
      expect(policy).not.toContain('unsafe')
    }
  })

  test('answer no page of another site, no name pointed at loopback, no form', async () => {
    const routes: Route[] = Object.values(ROUTES)
    for (const { method, path } of routes) {
      const refused = async (headers: Record<string, string>, status: number): Promise<void> => {
        const given = { ...bearer, ...json, ...headers }
        const answer = await send({ method, path: filled(path), headers: given })
        expect({ path, headers, status: answer.status }).toEqual({ path, headers, status })
      }
      await refused({ host: 'evil.example' }, 403)
      await refused({ origin: 'https://evil.example' }, 403)
      await refused({ 'sec-fetch-site': 'cross-site' }, 403)
      if (method === 'POST' || method === 'PUT') {
        await refused({ 'content-type': 'text/plain' }, 400)
        await refused({ 'content-type': 'multipart/form-data' }, 400)
      }
    }
    expect(shutdowns).toBe(0)
  })
})
