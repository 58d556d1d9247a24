/** `shoal daemon`: every setting of the config as a flag. */
import { CONFIG_OPTIONS, defaultDataDir, environmentName, flagName, loadConfig } from '../config.ts'
import type { DaemonReady } from '../daemon.ts'
import { fields } from './format.ts'
import type { Command, CommandOption, OptionValues } from './session.ts'

const SETTINGS = CONFIG_OPTIONS.filter((option) => option.key !== 'dataDir')

export const DAEMON_COMMAND: Command = {
  name: 'daemon',
  summary: 'run this node until Ctrl-C; the first start creates identity and data folder',
  examples: [
    'daemon',
    'daemon --bootstrap /ip4/192.0.2.1/tcp/4010',
    'daemon --data-dir ./second-node --api-port 0',
  ],
  options: SETTINGS.flatMap((option): CommandOption[] => {
    const flag = flagName(option.key)
    const summary = `${option.summary} [${environmentName(option.key)}]`
    if (option.kind !== 'switch') {
      const repeatable = option.kind === 'list'
      return [{ flags: `${flag} <${option.value}>`, summary, repeatable }]
    }
    return [
      { flags: flag, summary },
      { flags: flag.replace('--', '--no-'), summary: 'the opposite' },
    ]
  }),
  async run(session) {
    const { env, signal } = session.terminal
    const flags = settingsOf(session.options)
    const config = loadConfig({ flags, file: session.text('config'), env })
    // Loaded only here: the client commands need neither network nor engine, and start faster without.
    const { runDaemon } = await import('../daemon.ts')
    await runDaemon({
      config,
      signal,
      onReady: (ready) => session.emit(ready, () => readyLines(ready, env)),
    })
  },
}

/** Flags as commander names them (`apiPort`) to settings by key (`api.port`). */
function settingsOf(options: OptionValues): Record<string, unknown> {
  const settings = SETTINGS.map(({ key }) => [
    key,
    options[key.replaceAll(/\.(.)/g, (_, letter: string) => letter.toUpperCase())],
  ])
  return { dataDir: options['dataDir'], ...Object.fromEntries(settings) }
}

/** What a newcomer needs to go on; the same commands work in another terminal. */
function readyLines(ready: DaemonReady, env: NodeJS.ProcessEnv): string[] {
  const isDefault = ready.dataDir === defaultDataDir(env)
  const shoal = isDefault ? 'shoal' : `shoal --data-dir '${ready.dataDir}'`
  return [
    `shoal ${ready.version} is up, Ctrl-C stops it`,
    ...fields([
      ['  peer id', ready.peerId],
      ...ready.addresses.map((address) => ['  address', address] as const),
      ['  local API', ready.apiUrl],
      ['  data folder', ready.dataDir],
    ]),
    '',
    ...fields([
      ['  create a run', `${shoal} run create SPEC`],
      ['  find and join one', `${shoal} run list; ${shoal} run join ID`],
      ['  invite others', `${shoal} invite`],
      ['  look at this node', `${shoal} status`],
    ]),
    '',
  ]
}
