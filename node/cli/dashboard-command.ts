/** `shoal dashboard`: the link, and the browser. */
import { spawn } from 'node:child_process'
import { ROUTES } from '../api/routes.ts'
import type { Command } from './session.ts'

const OPENERS: Readonly<Record<string, readonly [string, ...string[]]>> = {
  darwin: ['open'],
  win32: ['cmd', '/c', 'start', ''],
}

export const DASHBOARD_COMMAND: Command = {
  name: 'dashboard',
  summary:
    'open the dashboard in a browser, and print a link to it that works once, for two minutes',
  examples: ['dashboard', 'dashboard --no-open'],
  options: [{ flags: '--no-open', summary: 'only print the link' }],
  async run(session) {
    const { signal } = session.terminal
    const daemon = session.daemon()
    const newLink = (isForOwnUser: boolean) =>
      daemon.call(ROUTES.dashboardLink, { isForOwnUser }, { signal })
    // Other users can see it among the browser's arguments.
    if (session.options['open'] !== false) openBrowser((await newLink(true)).link)
    // Another one, because each works only once. Over SSH its connection may come from the user who forwards it.
    const made = await newLink(false)
    session.note('the link works once, for two minutes:')
    session.emit(made, () => [made.link])
  },
}

/** Without a browser, as over SSH, the printed link is what is left. */
function openBrowser(link: string): void {
  const [command, ...args] = OPENERS[process.platform] ?? ['xdg-open']
  const child = spawn(command, [...args, link], { detached: true, stdio: 'ignore' })
  child.on('error', () => {})
  child.unref()
}
