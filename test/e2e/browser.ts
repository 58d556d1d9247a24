/** A real Chromium without a window, driven over the DevTools protocol by the WebSocket that Node has. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { raceSignal, systemClock } from '../../src/clock.ts'

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome']
const START_MS = 30_000
const CALL_MS = 20_000
const UNTIL_MS = 45_000

/** Its path, or undefined where there is none. */
export function findChromium(): string | undefined {
  const given = process.env['CHROMIUM']
  if (given !== undefined) return given
  return NAMES.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0)
}

const messageSchema = z.object({
  id: z.number().optional(),
  method: z.string().optional(),
  params: z.record(z.string(), z.unknown()).optional(),
  result: z.record(z.string(), z.unknown()).optional(),
  error: z.object({ message: z.string() }).optional(),
})
type Json = Record<string, unknown>

export interface Page {
  call(method: string, params?: Json): Promise<Json>
  /** Waits until the page is loaded. */
  open(url: string): Promise<void>
  /** The value of an expression in the page; promises are awaited. */
  evaluate(expression: string): Promise<unknown>
  /** Waits until an expression is true in the page. */
  until(expression: string): Promise<void>
  /** As a user types it: `Tab`, `Enter`, `ArrowLeft`, or text. */
  press(key: string): Promise<void>
  type(text: string): Promise<void>
  /** PNG of the whole page, in base64. */
  screenshot(): Promise<string>
  /** What the console, the network and the content security policy complained of. */
  readonly complaints: string[]
}

export interface Browser {
  page: Page
  close(): Promise<void>
}

/** `flags` are further ones of Chromium's. */
export async function startBrowser(path: string, ...flags: string[]): Promise<Browser> {
  const profile = mkdtempSync(join(tmpdir(), 'shoal-browser-'))
  const settings = [
    '--headless=new',
    '--remote-debugging-port=0',
    '--disable-gpu',
    '--no-first-run',
  ]
  // Of root, as in a container, Chromium has no sandbox; it only ever opens this machine's own page.
  const sandbox = process.getuid?.() === 0 ? ['--no-sandbox', '--disable-dev-shm-usage'] : []
  const all = [...settings, ...sandbox, ...flags, `--user-data-dir=${profile}`, 'about:blank']
  const child = spawn(path, all, { stdio: ['ignore', 'ignore', 'pipe'] })
  const address = new Promise<string>((resolve) => {
    let text = ''
    child.stderr.on('data', (piece) => {
      text += String(piece)
      const found = /DevTools listening on (ws:\S+)/.exec(text)?.[1]
      if (found !== undefined) resolve(found)
    })
  })
  const url = new URL(
    await raceSignal(address, systemClock.deadline(START_MS, 'the start of Chromium')),
  )
  const listed = await fetch(`http://${url.host}/json/list`)
  const targets = z
    .array(z.object({ type: z.string(), webSocketDebuggerUrl: z.string() }))
    .parse(await listed.json())
  const target = targets.find(({ type }) => type === 'page')
  if (target === undefined) throw new Error('Chromium has no page')
  const socket = new WebSocket(target.webSocketDebuggerUrl)
  await once(socket, 'open')
  const page = await createPage(socket)
  return {
    page,
    async close() {
      socket.close()
      const ended = once(child, 'close')
      child.kill('SIGKILL')
      await ended
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
    },
  }
}

async function createPage(socket: WebSocket): Promise<Page> {
  const pending = new Map<number, PromiseWithResolvers<Json>>()
  const waiting = new Map<string, () => void>()
  const complaints: string[] = []
  let calls = 0
  socket.addEventListener('message', ({ data }) => {
    const { id, method, params = {}, result, error } = messageSchema.parse(JSON.parse(String(data)))
    if (method !== undefined) {
      waiting.get(method)?.()
      complaints.push(...complaintsIn(method, params))
    }
    if (id === undefined) return
    if (error === undefined) pending.get(id)?.resolve(result ?? {})
    else pending.get(id)?.reject(new Error(error.message))
    pending.delete(id)
  })
  const call = async (method: string, params: Json = {}): Promise<Json> => {
    const answer = Promise.withResolvers<Json>()
    pending.set(++calls, answer)
    socket.send(JSON.stringify({ id: calls, method, params }))
    return await raceSignal(answer.promise, systemClock.deadline(CALL_MS, method))
  }
  for (const domain of ['Page', 'Runtime', 'Log', 'Network', 'Accessibility']) {
    await call(`${domain}.enable`)
  }
  const evaluate = async (expression: string): Promise<unknown> => {
    const how = { awaitPromise: true, returnByValue: true, allowUnsafeEvalBlockedByCSP: false }
    const params = { expression, ...how, userGesture: true }
    const { result, exceptionDetails } = await call('Runtime.evaluate', params)
    if (exceptionDetails !== undefined) {
      throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`)
    }
    return z.object({ value: z.unknown().optional() }).parse(result).value
  }
  return {
    call,
    complaints,
    evaluate,
    async open(url) {
      const { promise, resolve } = Promise.withResolvers<void>()
      waiting.set('Page.loadEventFired', resolve)
      await call('Page.navigate', { url })
      await raceSignal(promise, systemClock.deadline(CALL_MS, url))
    },
    async until(expression) {
      const deadline = systemClock.deadline(UNTIL_MS, expression)
      // What throws may not do so once the page is there.
      const isTrue = (): Promise<boolean> =>
        evaluate(expression).then(
          (value) => value === true,
          () => false,
        )
      while (!(await isTrue())) await systemClock.sleep(50, deadline)
    },
    async press(key) {
      const code = KEY_CODES[key] ?? 0
      const event = { key, code: key, windowsVirtualKeyCode: code }
      const text = key === 'Enter' ? { text: '\r' } : {}
      await call('Input.dispatchKeyEvent', { type: 'keyDown', ...event, ...text })
      await call('Input.dispatchKeyEvent', { type: 'keyUp', ...event })
    },
    async type(text) {
      await call('Input.insertText', { text })
    },
    async screenshot() {
      const { data } = await call('Page.captureScreenshot', { captureBeyondViewport: true })
      return z.string().parse(data)
    },
  }
}

const KEY_CODES: Readonly<Record<string, number>> = {
  Tab: 9,
  Enter: 13,
  Escape: 27,
  Home: 36,
  ArrowLeft: 37,
  ArrowRight: 39,
}

function complaintsIn(method: string, params: Json): string[] {
  const says = (level: unknown): boolean => level === 'error' || level === 'warning'
  const entry = z.object({ level: z.string(), text: z.string() }).safeParse(params['entry']).data
  if (method === 'Log.entryAdded' && says(entry?.level)) return [entry?.text ?? '']
  if (method === 'Runtime.exceptionThrown') return [JSON.stringify(params['exceptionDetails'])]
  if (method === 'Runtime.consoleAPICalled' && says(params['type'])) return [JSON.stringify(params)]
  return []
}
