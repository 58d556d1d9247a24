/** Links to the dashboard over HTTP: what whoever sees one, or guesses, can do with it. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { ROUTES } from '../../../../node/api/routes.ts'
import { LIMITS } from '../../../../src/limits.ts'
import { rawCall, startApis, TOKEN, type LocalApis, type RawAnswer } from './local-api.ts'

let local: LocalApis
beforeAll(async () => {
  local = await startApis(1, 'dashboard-link')
})
afterAll(() => local.close())

const JSON_TYPE = { 'content-type': 'application/json' }

async function newCode(isForOwnUser = false): Promise<string> {
  const { link } = await local.api.client.call(ROUTES.dashboardLink, { isForOwnUser })
  return new URL(link).hash.slice('#code='.length)
}

function exchange(code: string, headers: Record<string, string> = {}): Promise<RawAnswer> {
  return rawCall(local.api.client.url, {
    method: 'POST',
    path: '/v1/dashboard-token',
    headers: { ...JSON_TYPE, ...headers },
    body: JSON.stringify({ code }),
  })
}

test('a link is for the token alone to make, and its code is worth the token once', async () => {
  const refused = await rawCall(local.api.client.url, {
    method: 'POST',
    path: '/v1/dashboard-links',
    headers: JSON_TYPE,
    body: '{}',
  })
  expect(refused).toMatchObject({ status: 401 })
  const { link } = await local.api.client.call(ROUTES.dashboardLink, {})
  expect(link).not.toContain(TOKEN)
  expect(link.startsWith(`${local.api.client.url}/#code=`)).toBe(true)
  const code = await newCode()
  expect(await exchange(code)).toMatchObject({ status: 200, body: { token: TOKEN } })
  expect(await exchange(code)).toMatchObject({ status: 401, body: { code: 'unauthorized' } })
})

test('of two that bring a code at the same moment one gets the token', async () => {
  const code = await newCode()
  const answers = await Promise.all(Array.from({ length: 8 }, () => exchange(code)))
  const won = answers.filter(({ status }) => status === 200)
  expect(won).toHaveLength(1)
})

test('no page of another site can bring one, nor a name pointed at loopback, nor a form', async () => {
  const code = await newCode()
  const attempts: [Record<string, string>, number][] = [
    [{ origin: 'https://evil.example' }, 403],
    [{ 'sec-fetch-site': 'cross-site' }, 403],
    [{ host: 'evil.example' }, 403],
    [{ 'content-type': 'text/plain' }, 400],
    [{ 'content-type': 'application/x-www-form-urlencoded' }, 400],
  ]
  for (const [headers, status] of attempts) {
    expect(await exchange(code, headers)).toMatchObject({ status })
  }
  const inQuery = await rawCall(local.api.client.url, { path: `/v1/dashboard-token?code=${code}` })
  expect(inQuery).toMatchObject({ status: 404 })
  expect(await exchange(code)).toMatchObject({ status: 200 })
})

const isRoot = process.getuid?.() === 0 && process.platform === 'linux'
if (!isRoot) console.warn('another user who brings a code is not tested: that needs root on Linux')

test.skipIf(!isRoot)(
  'another user of the machine who saw the browser start gets nothing',
  async () => {
    const code = await newCode(true)
    const nobody = { uid: 65_534, gid: 65_534, cwd: '/', timeout: 60_000 }
    const data = ['-H', 'Content-Type: application/json', '-d', JSON.stringify({ code })]
    const path = `${local.api.client.url}/v1/dashboard-token`
    const { stdout } = await promisify(execFile)('curl', ['-s', ...data, path], nobody)
    expect(JSON.parse(stdout)).toMatchObject({ status: 403, code: 'forbidden' })
    expect(await exchange(code)).toMatchObject({ status: 200 })
  },
)

test('who guesses is stopped', async () => {
  for (let guess = 0; guess < LIMITS.linkGuesses; guess++) await exchange(`guess-${guess}`)
  const code = await newCode()
  expect(await exchange('another')).toMatchObject({ status: 429, body: { code: 'limit_exceeded' } })
  expect(await exchange(code)).toMatchObject({ status: 429 })
  expect(await local.api.client.call(ROUTES.health, {})).toEqual({ ok: true })
})
