/** Serves the dashboard's files as they are, a closed set, so that no path leads out of its folder; and opens its links. */
import { readdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { ShoalError } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import { isOwnConnection } from './connection-owner.ts'
import { bytesHandler, handler } from './handler.ts'
import type { HandlerOptions } from './handlers.ts'
import { createLinkCodes } from './link-codes.ts'
import type { Download } from './octets.ts'
import { ROUTES } from './routes.ts'

/** Beside this folder, in a checkout as in the package. */
const FOLDER = new URL('../dashboard/', import.meta.url)
const TYPES: Readonly<Record<string, string>> = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
}

export function dashboardHandlers({ node, clock, apiUrl, token }: HandlerOptions) {
  const codes = createLinkCodes(clock)
  const names = new Set(readdirSync(FOLDER).filter((name) => extname(name) in TYPES))
  const file = async (name: string): Promise<Download<Record<string, never>>> => {
    if (!names.has(name)) throw new ShoalError('not_found', `the dashboard has no file ${name}`)
    const content = await readFile(new URL(name, FOLDER))
    const contentType = TYPES[extname(name)]
    return { output: {}, content: [content], bytes: content.length, contentType }
  }
  return {
    dashboard: bytesHandler(ROUTES.dashboard, () => file('index.html')),
    dashboardFile: bytesHandler(ROUTES.dashboardFile, ({ file: name }) => file(name)),
    dashboardLink: handler(ROUTES.dashboardLink, (options) => ({
      // In the fragment, which browsers keep to themselves.
      link: `${apiUrl()}/#code=${codes.issue(options)}`,
      expiresInMs: DEADLINES.linkCodeMs,
    })),
    dashboardToken: handler(ROUTES.dashboardToken, async ({ code }, { ends }) => {
      codes.redeem(code, await isOwnConnection(ends))
      return { token }
    }),
    downloadCheckpoint: bytesHandler(ROUTES.downloadCheckpoint, async (input) => {
      const files = await node.exportCheckpoint(input.run, input.checkpoint)
      const found = files.find(({ name }) => name === input.file)
      if (found === undefined) {
        throw new ShoalError('not_found', `this checkpoint has no ${input.file}`)
      }
      return { output: {}, content: found.content, bytes: found.bytes }
    }),
  }
}
