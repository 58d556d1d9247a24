/** One `shoal daemon` as a child process: its log goes to a file, its death is a fault that shows the log's end. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { connectDaemon, type ApiClient } from '../../node/api/client.ts'
import { raceSignal, systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'

const CLI = fileURLToPath(new URL('../../node/cli.ts', import.meta.url))
/** Loading libp2p and the engine takes about a second of a core; several daemons share few cores here. */
const READY_MS = 60_000
/** From SIGTERM to SIGKILL. */
const STOP_MS = 5_000
const LOG_LINES_SHOWN = 12

export interface DaemonOptions {
  /** For people, such as `peer 2`. */
  name: string
  dataDir: string
  configFile: string
  logFile: string
  /** The only other peer it is told of. */
  bootstrap: string | undefined
  /** Called when the process ends without having been told to. */
  onDeath: (fault: ShoalError) => void
}

export interface DaemonProcess {
  readonly name: string
  /** Resolves when the daemon answers; rejects when `signal` fires or the daemon does not come up. */
  ready(signal: AbortSignal): Promise<ApiClient>
  stop(): Promise<void>
}

/** Starts a node on loopback that trains with one thread, since all peers share this machine's cores. */
export function spawnDaemon(options: DaemonOptions): DaemonProcess {
  const { name, dataDir, configFile, logFile, bootstrap } = options
  const settings = [
    ['--data-dir', dataDir],
    ['--config', configFile],
    ['--listen', '/ip4/127.0.0.1/tcp/0'],
    ['--api-port', '0'],
    ['--engine-threads', '1'],
    ['--log-format', 'json'],
    ...(bootstrap === undefined ? [] : [['--bootstrap', bootstrap]]),
  ]
  const log = openSync(logFile, 'a')
  const child = spawn(
    process.execPath,
    [CLI, 'daemon', '--json', '--no-mdns', ...settings.flat()],
    { stdio: ['ignore', 'pipe', log], env: ownEnvironment() },
  )
  closeSync(log)
  let stopping = false
  child.once('error', (cause) => {
    options.onDeath(new ShoalError('internal', `${name} could not be started`, { cause }))
  })
  child.once('exit', (code, signal) => {
    if (!stopping) options.onDeath(deathOf(name, code ?? signal, logFile))
  })
  return {
    name,
    async ready(signal) {
      const deadline = systemClock.deadline(READY_MS, `the start of ${name}`, signal)
      // The daemon's one line of output says that its API is up.
      await raceSignal(once(child.stdout!, 'data'), deadline)
      return connectDaemon(dataDir)
    },
    async stop() {
      stopping = true
      await endProcess(child)
    },
  }
}

/** The user's own settings of a node are not meant for these. */
function ownEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(process.env).filter(([key]) => !key.startsWith('SHOAL_')),
  )
}

async function endProcess(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  const patience = systemClock.deadline(STOP_MS, 'the end of a daemon')
  await raceSignal(exited, patience).catch(() => void child.kill('SIGKILL'))
  await exited
}

function deathOf(name: string, cause: number | string | null, logFile: string): ShoalError {
  const how = typeof cause === 'number' ? `exit code ${cause}` : `${cause}`
  const log = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-LOG_LINES_SHOWN)
  return new ShoalError('internal', `${name} ended unexpectedly (${how}); its log ends with:`, {
    details: { log },
  })
}
