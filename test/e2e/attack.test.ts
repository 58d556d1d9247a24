/**
 * A page of somebody else's in the user's browser, that tries to reach the node: by requests of every kind that pages can
 * send, by a frame, and by a name of its own that points at loopback (DNS rebinding).
 */
import { createServer, type Server } from 'node:http'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ROUTES } from '../../node/api/routes.ts'
import { startApis, TOKEN } from '../unit/node/api/local-api.ts'
import type { LocalApis } from '../unit/node/api/local-api.ts'
import { findChromium, startBrowser } from './browser.ts'
import type { Browser, Page } from './browser.ts'

const chromium = findChromium()
const EVIL = 'evil.example'

let local: LocalApis
let evil: Server
let evilPort: number
let browser: Browser
let page: Page
let api: string

/** What a request of the page comes to: a status, or that the browser or the node refused. */
async function attempt(expression: string): Promise<unknown> {
  return page.evaluate(`(async () => {
    try {
      const answer = await ${expression}
      return { status: answer.status, type: answer.type, text: answer.type === 'opaque' ? '' : await answer.text() }
    } catch (error) {
      return { refused: String(error) }
    }
  })()`)
}

describe.skipIf(chromium === undefined)('a page of another site', () => {
  beforeAll(async () => {
    local = await startApis(1, 'attack')
    api = local.api.client.url
    evil = createServer((_, response) => {
      response.setHeader('content-type', 'text/html')
      response.end('<!doctype html><title>evil</title>')
    })
    await new Promise<void>((resolve) => evil.listen(0, '127.0.0.1', resolve))
    const bound = evil.address()
    evilPort = typeof bound === 'object' ? (bound?.port ?? 0) : 0
    browser = await startBrowser(chromium ?? '', `--host-resolver-rules=MAP ${EVIL} 127.0.0.1`)
    page = browser.page
    await page.open(`http://${EVIL}:${evilPort}/`)
  })
  afterAll(async () => {
    await browser?.close()
    evil?.close()
    await local?.close()
  })

  test('reads nothing, with the token or without', async () => {
    for (const headers of ['{}', `{ authorization: 'Bearer ${TOKEN}' }`]) {
      for (const path of ['/v1/node', '/openapi.json', '/healthz', '/', '/metrics']) {
        const answer = await attempt(`fetch('${api}${path}', { headers: ${headers} })`)
        expect({ path, answer }).toMatchObject({ answer: { refused: expect.any(String) } })
      }
    }
  })

  test('does nothing by requests that need no leave', async () => {
    const connect = JSON.stringify({ address: '/ip4/127.0.0.1/tcp/9' })
    const simple = `{ method: 'POST', mode: 'no-cors', body: ${JSON.stringify(connect)} }`
    // Sent without a question, and answered with what the browser keeps from the page.
    expect(await attempt(`fetch('${api}/v1/peers', ${simple})`)).toHaveProperty('refused')
    const typed = `{ method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' }`
    expect(await attempt(`fetch('${api}/v1/shutdown', ${typed})`)).toHaveProperty('refused')
    await page.evaluate(`new Promise((resolve) => {
      const frame = document.createElement('iframe')
      frame.name = 'target'
      frame.onload = resolve
      document.body.append(frame)
      const form = document.createElement('form')
      form.action = '${api}/v1/shutdown'
      form.method = 'post'
      form.enctype = 'text/plain'
      form.target = 'target'
      document.body.append(form)
      form.submit()
    })`)
    expect(await local.api.client.call(ROUTES.node, {})).toMatchObject({ runs: 0, links: 0 })
  })

  test('cannot frame the dashboard, nor load the API as a script or a picture', async () => {
    const loaded =
      await page.evaluate(`Promise.all(['script', 'img'].map((tag) => new Promise((resolve) => {
      const element = document.createElement(tag)
      element.onload = () => resolve('loaded')
      element.onerror = () => resolve('refused')
      element.src = '${api}' + (tag === 'script' ? '/dashboard/main.js' : '/dashboard/icon.svg')
      document.body.append(element)
    })))`)
    expect(loaded).toEqual(['refused', 'refused'])
    await page.evaluate(`new Promise((resolve) => {
      const frame = document.createElement('iframe')
      frame.onload = resolve
      frame.src = '${api}/'
      document.body.append(frame)
    })`)
    const { frameTree } = await page.call('Page.getFrameTree')
    expect(JSON.stringify(frameTree)).not.toContain(`"url":"${api}/","domainAndRegistry"`)
    expect(JSON.stringify(frameTree)).not.toContain('"title":"Shoal"')
  })

  test('gets nowhere when its own name points at loopback', async () => {
    const { port } = new URL(api)
    await page.open(`http://${EVIL}:${port}/`)
    const text = z.string().parse(await page.evaluate('document.body.textContent'))
    expect(text).toContain('"code":"forbidden"')
    for (const path of ['/v1/node', '/healthz', '/dashboard/main.js']) {
      const options = `{ headers: { authorization: 'Bearer ${TOKEN}' } }`
      const answer = await attempt(`fetch('${path}', ${options})`)
      expect({ path, answer }).toMatchObject({ answer: { status: 403 } })
    }
    const post = `{ method: 'POST', headers: { 'content-type': 'application/json', authorization: 'Bearer ${TOKEN}' }, body: '{}' }`
    expect(await attempt(`fetch('/v1/shutdown', ${post})`)).toMatchObject({ status: 403 })
  })
})
