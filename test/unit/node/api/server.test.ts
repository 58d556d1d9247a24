import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
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
import type { RunEvent, RunView } from '../../../../src/run/view.ts'
import { createSwarm, realText, tinySpec } from '../../../swarm/swarm.ts'
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

describe('the routes', () => {
  test('are mounted, every one', async () => {
    const routes: Route[] = Object.values(ROUTES)
    for (const { method, path, answer: kind } of routes) {
      if (kind === 'events' || path === '/v1/shutdown') continue
      const query = path.endsWith('/requests') ? '?waitMs=0' : ''
      const answer = await send({
        method,
        path: `${filled(path)}${query}`,
        headers: { ...bearer, ...json },
      })
      expect(JSON.stringify({ path, ...answer })).not.toContain('is no route')
      expect({ path, ...answer }).not.toMatchObject({ status: 500 })
    }
  })

  test('tell of the node', async () => {
    const node = await client.call(ROUTES.node, {})
    expect(node).toMatchObject({ apiUrl: server.url, dataDir: folder, pid: process.pid })
    expect(node.peerId).toBe(swarm.nodes[0]?.peerId)
    expect(await client.call(ROUTES.peers, {})).toEqual({ peers: [] })
  })

  test('carry a run from its creation to its end', async () => {
    const data = join(folder, 'text.txt')
    writeFileSync(data, await realText())
    const abort = new AbortController()
    const events: RunEvent[] = []
    const listening = (async () => {
      for await (const event of client.events({ signal: abort.signal })) {
        events.push(event)
        if (event.type === 'run_status' && event.status === 'finished') break
      }
    })()
    const spec = tinySpec({
      data,
      outerSteps: 3,
      limits: { startTimeoutMs: 0, checkpointEvery: 1 },
    })
    const created = await client.call(ROUTES.createRun, { spec })
    const run = created.id
    expect(await client.call(ROUTES.runs, {})).toMatchObject({ runs: [{ id: run, name: 'tiny' }] })
    const { link } = await client.call(ROUTES.invite, { run })
    expect(link).toMatch(new RegExp(`^shoal:${run}`))

    const written = await client.call(ROUTES.writeBoard, { run, key: 'note', value: 'hello' })
    expect(written).toEqual({ board: { note: 'hello' } })
    expect(await client.call(ROUTES.board, { run })).toEqual(written)
    expect(await client.call(ROUTES.writeBoard, { run, key: 'note' })).toEqual({ board: {} })

    await listening
    abort.abort()
    const view: RunView = await client.call(ROUTES.showRun, { run })
    expect(view).toMatchObject({ status: 'finished', outerStep: 3 })
    expect(events.filter(({ type }) => type === 'outer_step')).toHaveLength(3)

    const { checkpoints } = await client.call(ROUTES.checkpoints, { run })
    expect(checkpoints.length).toBeGreaterThan(0)
    const exported = await client.call(ROUTES.exportCheckpoint, {
      run,
      folder: join(folder, 'model'),
    })
    expect(exported.files.map(({ name }) => name)).toContain('model.safetensors')
    const foreign = { run, folder }
    await expect(client.call(ROUTES.exportCheckpoint, foreign)).rejects.toMatchObject({
      code: 'folder_invalid',
    })
    expect(await client.call(ROUTES.leaveRun, { run })).toEqual({ left: run })
    await expect(client.call(ROUTES.showRun, { run })).rejects.toMatchObject({
      code: 'run_unknown',
    })
  })

  test('stream events to so many readers at once, and again when one has gone', async () => {
    const open = (signal: AbortSignal): Promise<Response> =>
      fetch(`${server.url}/v1/events`, { headers: bearer, signal })
    const readers = Array.from({ length: LIMITS.eventReaders }, () => new AbortController())
    const answers = await Promise.all(readers.map(({ signal }) => open(signal)))
    expect(answers.every(({ status }) => status === 200)).toBe(true)
    expect(answers[0]?.headers.get('content-type')).toBe('text/event-stream')
    const body = answers[0]?.body?.getReader()
    let text = ''
    while (!text.includes(': heartbeat')) {
      text += new TextDecoder().decode((await body?.read())?.value)
    }
    expect(text).toMatch(/^retry: 1000\nid: [0-9a-f]{8}-\d+\n\n: heartbeat/)

    const refused = await open(new AbortController().signal)
    expect(refused.status).toBe(429)
    expect(await refused.json()).toMatchObject({ code: 'limit_exceeded' })
    readers[0]?.abort()
    await expect
      .poll(async () => {
        const again = new AbortController()
        const { status } = await open(again.signal)
        again.abort()
        return status
      })
      .toBe(200)
    for (const reader of readers) reader.abort()
  })

  test('tell every one of 200 readers the same events', async () => {
    const data = join(folder, 'text-for-readers.txt')
    writeFileSync(data, await realText())
    const stop = new AbortController()
    const { signal } = stop
    const answers = await Promise.all(
      Array.from({ length: 200 }, () =>
        fetch(`${server.url}/v1/events`, { headers: bearer, signal }),
      ),
    )
    const read = async ({ body }: Response): Promise<string[]> => {
      let text = ''
      for await (const piece of body?.pipeThrough(new TextDecoderStream()) ?? []) {
        text += piece
        if (text.includes('"status":"finished"')) break
      }
      return text.split('\n').filter((line) => line.startsWith('data: '))
    }
    const readers = answers.map(read)
    const spec = tinySpec({ data, name: 'read', outerSteps: 2, limits: { startTimeoutMs: 0 } })
    const { id } = await client.call(ROUTES.createRun, { spec })
    const [first, ...others] = await Promise.all(readers)
    stop.abort()
    expect(first?.filter((event) => event.includes('"outer_step"'))).toHaveLength(2)
    for (const seen of others) expect(seen).toEqual(first)
    await client.call(ROUTES.leaveRun, { run: id })
  })

  test('tell a stop from the daemon', async () => {
    expect(await client.call(ROUTES.shutdown, {})).toEqual({ stopping: true })
    expect(shutdowns).toBe(1)
  })
})

describe('the client', () => {
  test('gives up at its deadline', async () => {
    const peer = '/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf'
    const call = client.call(ROUTES.connect, { address: peer }, { signal: AbortSignal.abort() })
    await expect(call).rejects.toMatchObject({ code: 'aborted' })
    const silent = createServer(() => {})
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
    const bound = silent.address()
    const port = typeof bound === 'object' ? bound?.port : undefined
    const waiting = createApiClient({ url: `http://127.0.0.1:${port}`, token: TOKEN })
    const late = waiting.call(ROUTES.node, {}, { deadlineMs: 50 })
    await expect(late).rejects.toMatchObject({
      code: 'timeout',
      message: 'GET /v1/node took longer than 50 ms',
    })
    silent.closeAllConnections()
    silent.close()
  })

  test('says so when nobody answers', async () => {
    const nobody = createApiClient({ url: 'http://127.0.0.1:1', token: TOKEN })
    await expect(nobody.call(ROUTES.node, {})).rejects.toMatchObject({ code: 'daemon_unreachable' })
    const events = nobody.events({ signal: new AbortController().signal })
    await expect(events[Symbol.asyncIterator]().next()).rejects.toMatchObject({
      code: 'daemon_unreachable',
    })
  })

  test('hands on that its token is wrong', async () => {
    const other = createApiClient({ url: server.url, token: 'wrong' })
    await expect(other.call(ROUTES.node, {})).rejects.toMatchObject({ code: 'unauthorized' })
  })
})
