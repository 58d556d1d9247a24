import { createServer } from 'node:net'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { ROUTES } from '../../node/api/routes.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

const UNKNOWN_RUN = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
/** Discard is a port where nobody listens. */
const NOBODY = '/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf'

let place: Workplace
let daemon: Daemon

beforeAll(async () => {
  place = createWorkplace()
  daemon = await place.daemon('first', '--bootstrap', NOBODY)
})
afterAll(() => place.close())

function file(name: string, content: string | Uint8Array): string {
  const path = join(place.folder, name)
  writeFileSync(path, content)
  return path
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => entry.name)
}

/** A fault as people see it: one line on stderr, nothing on stdout. */
function expectFault(
  outcome: { code: number | null; stdout: string; stderr: string },
  code: number,
  ...texts: string[]
): void {
  expect(outcome).toMatchObject({ code, stdout: '' })
  expect(outcome.stderr).toMatch(/^error: [^\n]+\n$/)
  for (const text of texts) expect(outcome.stderr).toContain(text)
}

describe('the first start', () => {
  test('creates identity, token and data folder, for this user only', () => {
    for (const name of ['identity.key', 'api-token', 'shoal.db', 'api.json']) {
      expect(statSync(join(daemon.dataDir, name)).mode & 0o077, name).toBe(0)
    }
    expect(daemon.ready).toMatchObject({ dataDir: daemon.dataDir, version: expect.any(String) })
    expect(daemon.ready.peerId).toMatch(/^12D3Koo/)
  })

  test('comes up though its bootstrap peer cannot be reached', async () => {
    expect(ROUTES.node.output.parse(await daemon.json('status'))).toMatchObject({
      peerId: daemon.ready.peerId,
      links: 0,
      runs: 0,
    })
    expect(await daemon.json('peers')).toEqual({ peers: [] })
    const { stdout } = await daemon.shoal('peers')
    expect(stdout).toContain('no peers')
  })
})

describe('the dashboard', () => {
  test('has a link that opens it once, and that does not hold the token', async () => {
    const { stdout, code } = await daemon.shoal('dashboard', '--no-open')
    const token = readFileSync(join(daemon.dataDir, 'api-token'), 'utf8')
    expect(code).toBe(0)
    const link = new URL(stdout.trim())
    expect(link.href).toMatch(`${daemon.ready.apiUrl}/#code=`)
    expect(link.href).not.toContain(token)
    const page = await fetch(link)
    expect(page.headers.get('content-type')).toContain('text/html')
    expect(await page.text()).toContain('<script type="module" src="/dashboard/main.js">')
    const exchange = async (): Promise<unknown> => {
      const answer = await fetch(`${link.origin}/v1/dashboard-token`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ code: link.hash.slice('#code='.length) }),
      })
      return await answer.json()
    }
    expect(await exchange()).toEqual({ token })
    expect(await exchange()).toMatchObject({ code: 'unauthorized' })
    const outcome = await place.shoal('dashboard', '--no-open', '--data-dir', '/nowhere')
    expectFault(outcome, 3, 'no daemon is running')
  })

  test('starts the browser with a link of its own, and never with the token', async () => {
    const bin = join(place.folder, 'bin')
    mkdirSync(bin)
    const seen = join(place.folder, 'browser-arguments')
    for (const name of ['xdg-open', 'open']) {
      const script = `#!/bin/sh\necho "$*" > '${seen}.new' && mv '${seen}.new' '${seen}'\n`
      writeFileSync(join(bin, name), script, { mode: 0o755 })
    }
    vi.stubEnv('PATH', `${bin}:${process.env['PATH']}`)
    onTestFinished(() => void vi.unstubAllEnvs())
    const { stdout } = await daemon.shoal('dashboard')
    await expect.poll(() => existsSync(seen), { timeout: 30_000 }).toBe(true)
    const given = readFileSync(seen, 'utf8')
    expect(given).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/#code=[\w-]{43}\n$/)
    expect(given).not.toBe(stdout)
    expect(given).not.toContain(readFileSync(join(daemon.dataDir, 'api-token'), 'utf8'))
  })
})

describe('what cannot be had is named with its remedy', () => {
  test('a data folder that another daemon has', async () => {
    const outcome = await place.spawned('daemon', '--data-dir', daemon.dataDir, '--api-port', '0')
    expectFault(outcome, 1, daemon.dataDir)
    expect(existsSync(join(daemon.dataDir, 'api.json'))).toBe(true)
    const asJson = await place.spawned('daemon', '--data-dir', daemon.dataDir, '--json')
    expect(JSON.parse(asJson.stderr)).toMatchObject({ error: { code: 'data_folder_in_use' } })
  })

  test('a port that is taken', async () => {
    const holder = createServer()
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve))
    const address = holder.address()
    const port = String(typeof address === 'object' ? address?.port : '')
    const start = ['daemon', '--data-dir', join(place.folder, 'busy'), '--no-mdns']
    const listen = ['--listen', '/ip4/127.0.0.1/tcp/0']
    expectFault(await place.spawned(...start, ...listen, '--api-port', port), 1, port, '--api-port')
    const taken = `/ip4/127.0.0.1/tcp/${port}`
    expectFault(await place.spawned(...start, '--listen', taken, '--api-port', '0'), 1, taken)
    expect(existsSync(join(place.folder, 'busy', 'api.json'))).toBe(false)
    holder.close()
  })

  test('a data folder that is a file', async () => {
    expectFault(
      await place.spawned('daemon', '--data-dir', file('not-a-folder', '')),
      1,
      'not-a-folder',
    )
  })

  test('a setting that does not exist', async () => {
    const config = file('config.toml', 'bootstarp = []\n')
    expectFault(await place.spawned('daemon', '--config', config), 2, "did you mean 'bootstrap'?")
    expect(existsSync(join(place.folder, 'data'))).toBe(false)
  })
})

describe('what a run command refuses', () => {
  test('a run that this node does not take part in', async () => {
    for (const words of [['show'], ['leave']]) {
      expectFault(await daemon.shoal('run', ...words, UNKNOWN_RUN), 1, UNKNOWN_RUN)
    }
    expectFault(await daemon.shoal('invite'), 2, 'takes part in no run')
    const asJson = await daemon.shoal('run', 'show', UNKNOWN_RUN, '--json')
    expect(JSON.parse(asJson.stderr)).toMatchObject({ error: { code: 'run_unknown' } })
  })

  test('a link that is none', async () => {
    for (const link of ['shoal:nothing', 'shoal:', `shoal:${UNKNOWN_RUN}?peer=here`]) {
      const outcome = await daemon.shoal('run', 'join', link)
      expectFault(outcome, 2)
    }
  })

  test.each([
    ['a malformed spec', 'data = "x"\nlayers = \n', 'line 2'],
    ['an unknown key', 'data = "x"\nouterStep = 1\n', "did you mean 'outerSteps'?"],
    ['a model that does not fit together', 'data = "enough.txt"\n[model]\nheads = 3\n', ''],
  ])('%s', async (_, text, message) => {
    file('enough.txt', 'Call me Ishmael. '.repeat(1000))
    expectFault(await daemon.shoal('run', 'create', file('bad.toml', text)), 2, message)
  })

  test.each([
    ['absent.txt', undefined, 'does not exist'],
    ['empty.txt', '', 'empty'],
    ['binary.dat', Uint8Array.of(1, 0, 2), 'binary'],
    ['latin1.txt', Uint8Array.of(0x63, 0xe9), 'UTF-8'],
    ['small.txt', 'Call me Ishmael.', 'has only 16 characters'],
  ])('data in %s', async (name, content, message) => {
    if (content !== undefined) file(name, content)
    const spec = file('data.toml', `data = "${name}"\n`)
    expectFault(await daemon.shoal('run', 'create', spec), 2, join(place.folder, name), message)
    expect(await daemon.json('run', 'list', '--local')).toEqual({ runs: [] })
  })

  test('nothing of all that is left on disk', () => {
    const blobs = join(daemon.dataDir, 'blobs')
    expect(filesBelow(blobs)).toEqual([])
  })
})

describe('the client', () => {
  test('is told when its token is not the daemon’s', async () => {
    const copy = join(place.folder, 'copy')
    mkdirSync(copy)
    writeFileSync(join(copy, 'api.json'), readFileSync(join(daemon.dataDir, 'api.json')))
    writeFileSync(join(copy, 'api-token'), 'f'.repeat(64))
    expectFault(await place.shoal('status', '--data-dir', copy), 3, 'token')
  })

  test('sends its token nowhere but to loopback', async () => {
    const copy = join(place.folder, 'elsewhere')
    mkdirSync(copy)
    const elsewhere = { version: 1, url: 'http://192.0.2.1:4011', pid: process.pid }
    writeFileSync(join(copy, 'api.json'), JSON.stringify(elsewhere))
    writeFileSync(join(copy, 'api-token'), 'f'.repeat(64))
    expectFault(await place.shoal('status', '--data-dir', copy), 3, 'no daemon is running')
  })
})

describe('the end', () => {
  test('by Ctrl-C is clean: exit code 0, api.json is gone, the next start is the same node', async () => {
    const one = await place.daemon('ends')
    expect(existsSync(join(one.dataDir, 'api.json'))).toBe(true)
    // A reader that hangs up is nothing to tell people about.
    const reader = new AbortController()
    const url = `${one.ready.apiUrl}/v1/events`
    const token = readFileSync(join(one.dataDir, 'api-token'), 'utf8')
    const headers = { authorization: `Bearer ${token}` }
    expect((await fetch(url, { headers, signal: reader.signal })).status).toBe(200)
    reader.abort()
    const ended = await one.end('SIGINT')
    expect(ended.code).toBe(0)
    expect(ended.stdout.trim().split('\n')).toHaveLength(1)
    for (const line of ended.stderr.trim().split('\n')) {
      expect(JSON.parse(line)).toMatchObject({ event: expect.any(String) })
    }
    expect(existsSync(join(one.dataDir, 'api.json'))).toBe(false)
    const status = ['status', '--data-dir', one.dataDir]
    expectFault(await place.spawned(...status), 3, 'start one with `shoal daemon`')

    const again = await place.daemon('ends')
    expect(again.ready.peerId).toBe(one.ready.peerId)
    expect(await again.json('shutdown')).toEqual({ stopping: true })
    expect((await again.ended).code).toBe(0)
  })

  test('by kill -9 leaves a folder that starts again', async () => {
    const one = await place.daemon('killed')
    expect((await one.end('SIGKILL')).code).toBeNull()
    expectFault(await one.shoal('status'), 3, 'no daemon is running')
    const again = await place.daemon('killed')
    expect(again.ready.peerId).toBe(one.ready.peerId)
    expect((await again.end()).code).toBe(0)
  })
})
