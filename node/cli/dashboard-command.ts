/** `shoal dashboard`: the link, and the browser. */
import { spawn } from 'node:child_process'
import { readToken } from '../api/client.ts'
import { ROUTES } from '../api/routes.ts'
import type { Command } from './session.ts'

const OPENERS: Readonly<Record<string, readonly [string, ...string[]]>> = {
  darwin: ['open'],
  win32: ['cmd', '/c', 'start', ''],
}

export const DASHBOARD_COMMAND: Command = {
  name: 'dashboard',
  summary: 'open the dashboard in a browser, and print its link, which carries the API token',
  examples: ['dashboard', 'dashboard --no-open'],
  options: [{ flags: '--no-open', summary: 'only print the link' }],
  async run(session) {
    const { signal } = session.terminal
    const { url } = session.daemon()
    const { dataDir } = await session.daemon().call(ROUTES.node, {}, { signal })
    // In the fragment, which browsers keep to themselves.
    const link = `${url}/#token=${readToken(dataDir)}`
    if (session.options['open'] !== false) openBrowser(link)
    session.emit({ link }, () => [link])
  },
}

/** Without a browser, as over SSH, the printed link is what is left. */
function openBrowser(link: string): void {
  const [command, ...args] = OPENERS[process.platform] ?? ['xdg-open']
  const child = spawn(command, [...args, link], { detached: true, stdio: 'ignore' })
  child.on('error', () => {})
  child.unref()
}
