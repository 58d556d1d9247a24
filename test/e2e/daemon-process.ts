/**
 * Real daemons as child processes, on loopback and in temporary folders, and commands against them: in this process,
 * which saves their start, or as processes of their own where that matters.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { runProgram } from '../../node/cli/program.ts'
import type { DaemonReady } from '../../node/daemon.ts'
import { raceSignal, systemClock } from '../../src/clock.ts'

const CLI = fileURLToPath(new URL('../../node/cli.ts', import.meta.url))
const COMMAND_MS = 45_000

export interface Outcome {
  code: number | null
  stdout: string
  stderr: string
}

export interface Daemon {
  readonly ready: DaemonReady
  readonly dataDir: string
  /** Runs a command against this daemon, in this process. */
  shoal(...argv: string[]): Promise<Outcome>
  /** Starts a command as a process. */
  started(...argv: string[]): {
    outcome: Promise<Outcome>
    kill: (signal: NodeJS.Signals) => void
  }
  /** Runs a command and sends SIGINT at its first output. */
  interrupted(...argv: string[]): Promise<Outcome>
  /** Runs a command with `--json`, expects success, and returns what it printed. */
  json(...argv: string[]): Promise<unknown>
  /** Resolves when the process has ended. */
  readonly ended: Promise<Outcome>
  /** Sends a signal and waits for the end. */
  end(signal?: NodeJS.Signals): Promise<Outcome>
}

export interface Workplace {
  readonly folder: string
  /** Runs a command in this process. */
  shoal(...argv: string[]): Promise<Outcome>
  /** Runs a command as a process. */
  spawned(...argv: string[]): Promise<Outcome>
  /** Starts a daemon and waits until it is up. */
  daemon(dataDir: string, ...argv: string[]): Promise<Daemon>
  /** Starts a daemon and kills it (SIGKILL) after so long, whether it is up by then or not. */
  killed(dataDir: string, afterMs: number): Promise<void>
  /** Ends what still runs and removes every file. */
  close(): Promise<void>
}

/**
 * A folder of its own for configuration and data: nothing of the user's is read or written. `wrapper`: a command that
 * each process is started through, and that becomes it.
 */
export function createWorkplace(wrapper: readonly string[] = []): Workplace {
  const folder = mkdtempSync(join(tmpdir(), 'shoal-e2e-'))
  const running = new Set<ChildProcess>()
  const env = {
    PATH: process.env['PATH'],
    HOME: folder,
    XDG_CONFIG_HOME: join(folder, 'config'),
    XDG_DATA_HOME: join(folder, 'data'),
  }

  const start = (argv: readonly string[]): { child: ChildProcess; outcome: Promise<Outcome> } => {
    const [program = '', ...words] = [...wrapper, process.execPath, CLI, ...argv]
    const child = spawn(program, words, { cwd: folder, env })
    running.add(child)
    const outcome: Outcome = { code: null, stdout: '', stderr: '' }
    child.stdout.on('data', (text) => (outcome.stdout += String(text)))
    child.stderr.on('data', (text) => (outcome.stderr += String(text)))
    const closed = once(child, 'close').then(([code]: unknown[]) => {
      running.delete(child)
      return { ...outcome, code: typeof code === 'number' ? code : null }
    })
    return { child, outcome: closed }
  }
  const spawned = async (...argv: string[]): Promise<Outcome> => {
    const deadline = systemClock.deadline(COMMAND_MS, `shoal ${argv.join(' ')}`)
    return await raceSignal(start(argv).outcome, deadline)
  }
  const shoal = async (...argv: string[]): Promise<Outcome> => {
    const outcome: Outcome = { code: null, stdout: '', stderr: '' }
    const code = await runProgram(argv, {
      stdout: { write: (text) => (outcome.stdout += text) },
      stderr: { write: (text) => (outcome.stderr += text) },
      env,
      cwd: folder,
      signal: systemClock.deadline(COMMAND_MS, `shoal ${argv.join(' ')}`),
    })
    return { ...outcome, code }
  }

  return {
    folder,
    shoal,
    spawned,
    async daemon(name, ...argv) {
      const { child, outcome } = start(daemonArguments(join(folder, name), argv))
      const ready = await readyLine(child, outcome)
      // What a wrapper has mounted is seen through its process.
      const root = wrapper.length === 0 ? '/' : `/proc/${ready.pid}/root`
      const dataDir = join(root, folder, name)
      const own = (...words: string[]): Promise<Outcome> => shoal(...words, '--data-dir', dataDir)
      return {
        ready,
        dataDir,
        shoal: own,
        ended: outcome,
        started: (...words) => {
          const command = start([...words, '--data-dir', dataDir])
          return { outcome: command.outcome, kill: (signal) => void command.child.kill(signal) }
        },
        interrupted: async (...words) => {
          const command = start([...words, '--data-dir', dataDir])
          for (const stream of [command.child.stdout, command.child.stderr]) {
            stream?.once('data', () => command.child.kill('SIGINT'))
          }
          return await command.outcome
        },
        json: async (...words) => {
          const { code, stdout, stderr } = await own(...words, '--json')
          if (code !== 0) throw new Error(`shoal ${words.join(' ')}: exit code ${code}: ${stderr}`)
          return JSON.parse(stdout)
        },
        end: async (signal = 'SIGTERM') => {
          child.kill(signal)
          return await outcome
        },
      }
    },
    async killed(name, afterMs) {
      const { child, outcome } = start(daemonArguments(join(folder, name), []))
      await systemClock.sleep(afterMs)
      child.kill('SIGKILL')
      await outcome
    },
    async close() {
      const ends = [...running].map((child) => once(child, 'close'))
      for (const child of running) child.kill('SIGKILL')
      await Promise.all(ends)
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function daemonArguments(dataDir: string, argv: readonly string[]): string[] {
  const settings = ['--engine-threads', '1', '--log-format', 'json', '--no-mdns']
  const ports = ['--listen', '/ip4/127.0.0.1/tcp/0', '--api-port', '0']
  const chosen = argv.includes('--listen') ? ports.slice(2) : ports
  return ['daemon', '--json', '--data-dir', dataDir, ...settings, ...chosen, ...argv]
}

async function readyLine(child: ChildProcess, outcome: Promise<Outcome>): Promise<DaemonReady> {
  const line = new Promise<string>((resolve) => {
    child.stdout?.once('data', (text) => resolve(String(text)))
  })
  const failed = outcome.then(({ code, stderr }): never => {
    throw new Error(`the daemon ended with exit code ${code}: ${stderr}`)
  })
  const deadline = systemClock.deadline(COMMAND_MS, 'the start of a daemon')
  return JSON.parse(await raceSignal(Promise.race([line, failed]), deadline))
}
