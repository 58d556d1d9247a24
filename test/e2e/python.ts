/** A Python on this machine, by what it can import. */
import { execFileSync, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { raceSignal, systemClock } from '../../src/clock.ts'

/** `SHOAL_PYTHON`, else those that are usual; the pyenv of a developer may lack what Debian's has. */
const COMMANDS = [process.env['SHOAL_PYTHON'], 'python3', '/usr/bin/python3'].filter(
  (command) => command !== undefined,
)

/** The first Python that can import `modules`; undefined when there is none. */
export function findPython(...modules: string[]): string | undefined {
  return COMMANDS.find((command) => {
    try {
      const code = ['sys', ...modules].map((name) => `import ${name}`).join('\n')
      execFileSync(command, ['-c', code], { stdio: 'ignore', timeout: 60_000 })
      return true
    } catch {
      return false
    }
  })
}

/** For the name of a test: which Python runs it, or why none does. */
export function pythonNote(python: string | undefined, what: string): string {
  return python === undefined ? `skipped: no Python with ${what} on this machine` : python
}

export interface Script {
  readonly child: ChildProcess
  /** What it has written so far. */
  output(): string
  /** Resolves once the output fits; rejects when the script ends before that, or after `ms`. */
  says(what: RegExp, ms?: number): Promise<void>
  /** Resolves to the exit code, null when it was killed. */
  ended: Promise<number | null>
}

export function runPython(
  python: string,
  argv: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Script {
  const env = {
    ...process.env,
    PYTHONUNBUFFERED: '1',
    PYTHONDONTWRITEBYTECODE: '1',
    ...environment,
  }
  const child = spawn(python, argv, { env })
  let output = ''
  let more = Promise.withResolvers<void>()
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (text) => {
      output += String(text)
      more.resolve()
      more = Promise.withResolvers()
    })
  }
  const ended = once(child, 'close').then(([code]: unknown[]) =>
    typeof code === 'number' ? code : null,
  )
  return {
    child,
    output: () => output,
    ended,
    async says(what, ms = 60_000) {
      const deadline = systemClock.deadline(ms, `${what} of ${argv.join(' ')}`)
      while (!what.test(output)) {
        const over = ended.then((code) => {
          if (what.test(output)) return
          throw new Error(`exit code ${code} before ${what}:\n${output}`)
        })
        await raceSignal(Promise.race([more.promise, over]), deadline).catch((cause: unknown) => {
          throw new Error(`${String(cause)}\n${output}`, { cause })
        })
      }
    },
  }
}
