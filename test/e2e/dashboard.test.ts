/** The dashboard in a real Chromium, as people use it: with eyes, with keys only, and through a screen reader. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ROUTES } from '../../node/api/routes.ts'
import { startApis, TOKEN } from '../unit/node/api/local-api.ts'
import type { LocalApis } from '../unit/node/api/local-api.ts'
import { realText, tinySpec, waitForRun } from '../swarm/swarm.ts'
import { findChromium, startBrowser } from './browser.ts'
import type { Browser, Page } from './browser.ts'

const chromium = findChromium()
if (chromium === undefined) {
  console.warn('the dashboard is not tested: no Chromium on the PATH, nor in CHROMIUM')
}

const PEERS = 5
const OFFLINE = { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 }
let local: LocalApis
let browser: Browser
let page: Page
let run: string
let textFile: string

/** Pictures for people to look at, where the environment names a folder. */
async function picture(name: string): Promise<void> {
  const png = Buffer.from(await page.screenshot(), 'base64')
  expect(png.length).toBeGreaterThan(20_000)
  const folder = process.env['SCREENSHOTS']
  if (folder === undefined) return
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, `${name}.png`), png)
}

async function sized(width: number, height: number): Promise<void> {
  const metrics = { width, height, deviceScaleFactor: 1, mobile: false }
  await page.call('Emulation.setDeviceMetricsOverride', metrics)
}

async function colours(scheme: 'dark' | 'light'): Promise<void> {
  const features = [{ name: 'prefers-color-scheme', value: scheme }]
  await page.call('Emulation.setEmulatedMedia', { features })
}

/** Presses Tab until an element that fits has the focus. */
async function tabTo(selector: string): Promise<void> {
  for (let presses = 0; presses < 60; presses++) {
    await page.press('Tab')
    if (
      (await page.evaluate(`document.activeElement.matches(${JSON.stringify(selector)})`)) === true
    )
      return
  }
  throw new Error(`no way to ${selector} by Tab`)
}

const contentOf = (selector: string): Promise<unknown> =>
  page.evaluate(`document.querySelector(${JSON.stringify(selector)}).textContent`)

describe.skipIf(chromium === undefined)('the dashboard', () => {
  beforeAll(async () => {
    local = await startApis(PEERS, 'dashboard')
    textFile = join(local.folder, 'text.txt')
    writeFileSync(textFile, await realText())
    const limits = { minPeers: PEERS, checkpointEvery: 5 }
    const spec = tinySpec({ data: textFile, name: 'moby dick', outerSteps: 30, limits })
    run = (await local.api.client.call(ROUTES.createRun, { spec })).id
    const { link } = await local.api.client.call(ROUTES.invite, { run })
    for (const { client } of local.apis.slice(1)) await client.call(ROUTES.joinRun, { run: link })
    await waitForRun(local.api.node, run, ({ outerStep }) => outerStep >= 12)
    browser = await startBrowser(chromium ?? '')
    page = browser.page
    await page.call('Emulation.setScrollbarsHidden', { hidden: true })
    await sized(1280, 900)
    await colours('light')
  })
  afterAll(async () => {
    await browser?.close()
    await local?.close()
  })

  test('asks for the token without it, and says when it is wrong', async () => {
    const { url } = local.api.client
    await page.open(url)
    await page.until(`!document.querySelector('#token-form').hidden`)
    expect(await page.evaluate('document.activeElement.id')).toBe('token-input')
    await page.type('wrong')
    await page.press('Enter')
    await page.until(`document.querySelector('#token-error').textContent.includes('not the token')`)
    expect(await page.evaluate(`document.querySelector('#layout').hidden`)).toBe(true)
    await page.type(TOKEN)
    await page.press('Enter')
    await page.until(`document.querySelector('#connection').textContent === 'connected'`)
    await page.evaluate('sessionStorage.clear()')
    // The refused calls are logged by the browser.
    page.complaints.splice(0)
  })

  test('opens by its link, once, and keeps the code out of the address', async () => {
    await page.open('about:blank')
    const { link } = await local.api.client.call(ROUTES.dashboardLink, {})
    await page.open(link)
    await page.until(`document.querySelector('#connection').textContent === 'connected'`)
    expect(await page.evaluate('location.href')).toBe(`${local.api.client.url}/`)
    await page.evaluate('sessionStorage.clear()')
    await page.open('about:blank')
    await page.open(link)
    await page.until(`document.querySelector('#token-error').textContent.includes('has been used')`)
    await picture('used-link')
    page.complaints.splice(0)
    // In the tab where the page is already, only the fragment changes.
    const next = await local.api.client.call(ROUTES.dashboardLink, {})
    await page.evaluate(`location.hash = ${JSON.stringify(new URL(next.link).hash)}`)
    await page.until(`document.querySelector('#connection').textContent === 'connected'`)
    expect(await page.evaluate('location.href')).toBe(`${local.api.client.url}/`)
    await page.until(`document.querySelector('#run-name').textContent === 'moby dick'`)
  })

  test('shows the swarm, its curves and its members', async () => {
    await waitForRun(local.api.node, run, ({ status }) => status === 'finished')
    await page.until(`document.querySelector('#run-status').textContent === 'finished'`)
    await page.until(`document.querySelectorAll('#graph .member').length === ${PEERS}`)
    expect(await page.evaluate(`document.querySelectorAll('#graph .link.direct').length`)).toBe(
      local.api.node.peers().length,
    )
    expect(await page.evaluate(`document.querySelectorAll('#members tbody tr').length`)).toBe(PEERS)
    for (const chart of ['loss', 'distance', 'throughput', 'bytes']) {
      const points = await page.evaluate(
        `document.querySelector('#chart-${chart} .curve.series-0').getAttribute('points').split(' ').length`,
      )
      expect({ chart, points: Number(points) > 15 }).toEqual({ chart, points: true })
    }
    const others = `document.querySelectorAll('#chart-throughput .series-group:not(.key)').length`
    expect(await page.evaluate(others)).toBe(PEERS - 1)
    expect(await contentOf('#chart-throughput .chart-legend')).toBe('this nodetogetherother peers')
    expect(await page.evaluate(`document.querySelectorAll('#timeline .presence').length`)).toBe(
      PEERS,
    )
    const figures = await contentOf('#figures')
    const view = await local.api.client.call(ROUTES.showRun, { run })
    expect(figures).toContain(view.loss?.toFixed(4))
    await picture('light')
    await colours('dark')
    await picture('dark')
    await sized(390, 844)
    await page.until(`document.documentElement.scrollWidth <= document.documentElement.clientWidth`)
    await picture('narrow')
    await sized(1280, 900)
    await colours('light')
  })

  test('gives a checkpoint', async () => {
    await page.call('Browser.setDownloadBehavior', {
      behavior: 'allow',
      downloadPath: local.folder,
    })
    await page.evaluate(`document.querySelector('#checkpoints button').click()`)
    await page.until(
      `document.querySelector('#toast').textContent === 'model.safetensors is saved'`,
    )
  })

  test('says all that it has to say to a screen reader', async () => {
    const { nodes } = z
      .object({
        nodes: z.array(
          z.object({
            ignored: z.boolean(),
            role: z.object({ value: z.string() }).optional(),
            name: z.object({ value: z.string().optional() }).optional(),
          }),
        ),
      })
      .parse(await page.call('Accessibility.getFullAXTree'))
    const seen = nodes.filter(({ ignored }) => !ignored)
    const named = (role: string): string[] =>
      seen.flatMap((node) => (node.role?.value === role ? (node.name?.value ?? '') : []))
    for (const role of ['button', 'textbox', 'image', 'table', 'progressbar', 'navigation']) {
      const names = named(role)
      expect({ role, names: names.length > 0 }).toEqual({ role, names: true })
      for (const name of names) expect({ role, name }).not.toEqual({ role, name: '' })
    }
    const pictures = named('image').join('\n')
    expect(pictures).toMatch(/Swarm of 5 members; this node has \d direct and 0 relayed links/)
    expect(pictures).toMatch(/Loss, nats per token: training [\d.]+ at outer step 30, validation/)
    expect(pictures).toMatch(/Tokens per second: this node .*, together .*, other peers .* to /)
    expect(pictures).toMatch(/Membership over the last .*: 5 peers seen, 5 here now/)
    expect(named('heading')).toEqual(
      expect.arrayContaining(['Shoal', 'Runs', 'moby dick', 'Swarm', 'Checkpoints', 'Board']),
    )
  })

  test('reads out values by the arrow keys', async () => {
    await tabTo('#chart-loss svg')
    await page.press('Home')
    expect(await contentOf('#chart-loss output')).toMatch(/^step \d+: .*\d\.\d/)
    await page.press('ArrowRight')
    await page.press('ArrowRight')
    expect(await contentOf('#chart-loss output')).toMatch(/^step 2: training \d\.\d/)
    const live = `document.querySelector('#chart-loss output').getAttribute('aria-live')`
    expect(await page.evaluate(live)).toBe('polite')
    const place = `document.querySelector('#chart-loss svg').getBoundingClientRect().toJSON()`
    const { x, y } = z.object({ x: z.number(), y: z.number() }).parse(await page.evaluate(place))
    const over = { type: 'mouseMoved', x: x + 200, y: y + 100 }
    await page.call('Input.dispatchMouseEvent', over)
    // A pointer passes over many values, and nobody needs to hear them all.
    await page.until(`${live} === 'off'`)
    expect(await contentOf('#chart-loss output')).toMatch(/^step \d+: /)
  })

  test('leaves in place what it shows, when it shows it again', async () => {
    await page.evaluate(
      `window.cells = [...document.querySelectorAll('#members tbody th, #links tbody th')]`,
    )
    expect(await page.evaluate('cells.length')).toBe(2 * PEERS - 1)
    const uptime = `document.querySelector('#node-facts').textContent`
    const before = JSON.stringify(await page.evaluate(uptime))
    await page.until(`${uptime} !== ${before}`)
    const after = JSON.stringify(await page.evaluate(uptime))
    await page.until(`${uptime} !== ${after}`)
    expect(await page.evaluate('cells.every((cell) => cell.isConnected)')).toBe(true)
  })

  test('creates, pauses and leaves a run with keys only', async () => {
    await page.evaluate('document.activeElement.blur()')
    await tabTo('#open-create')
    await page.press('Enter')
    await page.until(`document.querySelector('#create-dialog').open`)
    await tabTo('[name=data]')
    await page.type('/absent/text.txt')
    await page.press('Enter')
    await page.until(`document.querySelector('#create-form .error').textContent.includes('absent')`)
    await page.evaluate(`document.querySelector('[name=data]').select()`)
    await page.type(textFile)
    await tabTo('#create-form [name=more]')
    await page.type('{"limits": {"startTimeoutMs": 0}, "outerSteps": 100000, "innerSteps": 5}')
    await tabTo('#create-form button[type=submit]')
    await page.press('Enter')
    await page.until(`document.querySelector('#run-name').textContent === 'my-run'`)
    await page.until(`document.querySelector('#run-status').textContent === 'training'`)
    const address = await page.evaluate('location.href')
    await page.evaluate(`document.querySelector('.skip').focus()`)
    await page.press('Enter')
    expect(await page.evaluate('document.activeElement.id')).toBe('main')
    expect(await page.evaluate('location.href')).toBe(address)
    await tabTo('#pause')
    await page.press('Enter')
    await page.until(`document.querySelector('#run-status').textContent === 'paused'`)
    expect(await contentOf('#board')).toContain('paused')
    await tabTo('#leave')
    await page.press('Enter')
    await page.until(`document.querySelector('#leave-dialog').open`)
    await picture('dialog')
    await tabTo('#leave-form button[type=submit]')
    await page.press('Enter')
    await page.until(`document.querySelector('#run-name').textContent === 'moby dick'`)
    expect(await local.api.client.call(ROUTES.runs, {})).toMatchObject({ runs: [{ id: run }] })
  })

  test('draws relayed links, peers of other runs, and swarms too large for names', async () => {
    const view = await local.api.client.call(ROUTES.showRun, { run })
    const [member] = view.members
    const [link] = (await local.api.client.call(ROUTES.peers, {})).peers
    const many = Array.from({ length: 40 }, (_, index) => {
      const partners = index === 0 ? [] : [`peer-${index - 1}-of-many`]
      return { ...member, peer: `peer-${index}-of-many`, self: index === 0, partners }
    })
    const linked = (peer: string, direct: boolean): object => ({ ...link, peer, direct })
    const links = [1, 2, 3].map((index) => linked(`peer-${index}-of-many`, index === 1))
    const stranger = linked('somebody-else', true)
    const counts = await page.evaluate(`(async () => {
      const { createGraph } = await import('/dashboard/graph.js')
      const place = document.createElement('div')
      createGraph(place)(${JSON.stringify({ ...view, members: many })}, ${JSON.stringify([...links, stranger])})
      const count = (what) => place.querySelectorAll(what).length
      const label = place.querySelector('svg').getAttribute('aria-label')
      const { showMembers } = await import('/dashboard/tables.js')
      const table = document.createElement('table')
      const [first] = ${JSON.stringify(many)}
      const members = Array.from({ length: 1000 }, (_, n) => ({ ...first, peer: 'peer ' + n }))
      showMembers(table, { ...${JSON.stringify(view)}, members }, [])
      const last = table.rows[table.rows.length - 1].textContent
      return [last, ...['.member', '.link.relayed', '.link.direct', '.stranger', '.averaging', '.name'].map(count), label]
    })()`)
    expect(counts).toEqual([
      'and 800 more',
      40,
      2,
      2,
      1,
      39,
      0,
      expect.stringContaining('1 direct and 2 relayed'),
    ])
  })

  test('has nothing refused by its own content security policy, and no error', () => {
    const others = page.complaints.filter((text) => !text.includes('status of 422'))
    expect(others).toEqual([])
  })

  test('says that the node is gone, and goes on when it is back', async () => {
    await page.call('Network.emulateNetworkConditions', OFFLINE)
    await page.until(`document.querySelector('#connection').textContent.includes('is it running?')`)
    await page.call('Network.emulateNetworkConditions', { ...OFFLINE, offline: false })
    await page.until(`document.querySelector('#connection').textContent === 'connected'`)
  })

  test('runs nothing that somebody else brings', async () => {
    const foreign = await page.evaluate(`new Promise((resolve) => {
      const script = document.createElement('script')
      script.textContent = 'window.broken = true'
      document.body.append(script)
      const image = new Image()
      image.onerror = () => resolve(window.broken !== true)
      image.src = 'https://192.0.2.1/leak'
    })`)
    expect(foreign).toBe(true)
    const evaluated = page.evaluate(`eval('1')`)
    await expect(evaluated).rejects.toThrow(/Content Security Policy/)
  })
})
