/** What a command has at hand: its arguments, the daemon, and where its result goes. */
import { ShoalError } from '../../src/errors.ts'
import { connectDaemon } from '../api/client.ts'
import type { ApiClient } from '../api/client.ts'
import { ROUTES } from '../api/routes.ts'
import { loadConfig } from '../config.ts'
import type { TextStream } from '../progress.ts'

/** The world outside the program, so that commands can be run in a test. */
export interface Terminal {
  stdout: TextStream
  stderr: TextStream
  env: NodeJS.ProcessEnv
  cwd: string
  /** Fires at the first Ctrl-C. */
  signal: AbortSignal
}

export interface CommandOption {
  /** As commander reads it: `--name <value>`, `--name`, `--no-name`. */
  flags: string
  summary: string
  /** Each use adds a value. */
  repeatable?: boolean
  /** The command does not work without. */
  mandatory?: boolean
}

export interface Command {
  /** Words before the arguments, such as `run show`. */
  name: string
  /** Such as `<run>` or `[run]`. */
  arguments?: string
  summary: string
  /** What to type after `shoal`; shown by `--help`. */
  examples: readonly string[]
  options?: readonly CommandOption[]
  run(session: Session): Promise<void>
}

/** Values as commander parsed them; `true` and `false` for switches. */
export type OptionValues = Readonly<Record<string, unknown>>

export interface Session {
  readonly terminal: Terminal
  /** Whether `--json` was given. */
  readonly json: boolean
  readonly options: OptionValues
  /** Positional argument, or undefined when left out. */
  argument(index: number): string | undefined
  /** Value of `--name <value>`. */
  text(name: string): string | undefined
  number(name: string, bounds: { min: number; max: number; whole?: boolean }): number | undefined
  /** A client of the daemon of the chosen data folder. */
  daemon(): ApiClient
  /** Says on a terminal what a slow command is doing. */
  note(line: string): void
  /** The result: one JSON object with `--json`, else lines for people. */
  emit(value: object, lines: () => readonly string[]): void
}

export function createSession(
  terminal: Terminal,
  positional: readonly string[],
  options: OptionValues,
): Session {
  const json = options['json'] === true
  const text = (name: string): string | undefined => {
    const value = options[name]
    return typeof value === 'string' ? value : undefined
  }
  return {
    terminal,
    json,
    options,
    argument: (index) => positional[index],
    text,
    number: (name, bounds) => parseNumber(name, text(name), bounds),
    daemon: () => {
      const flags = { dataDir: options['dataDir'] }
      const config = loadConfig({ flags, file: text('config'), env: terminal.env })
      return connectDaemon(config.dataDir)
    },
    note(line) {
      if (!json && terminal.stderr.isTTY === true) terminal.stderr.write(`${line}\n`)
    },
    emit(value, lines) {
      const shown = json ? [JSON.stringify(value)] : lines()
      terminal.stdout.write(shown.map((line) => `${line}\n`).join(''))
    },
  }
}

function parseNumber(
  name: string,
  text: string | undefined,
  { min, max, whole = false }: { min: number; max: number; whole?: boolean },
): number | undefined {
  if (text === undefined) return undefined
  const value = Number(text)
  if (text.trim() !== '' && value >= min && value <= max && (!whole || Number.isInteger(value))) {
    return value
  }
  const flag = `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
  const kind = whole ? 'a whole number' : 'a number'
  throw new ShoalError('usage', `${flag} must be ${kind} from ${min} to ${max}, not '${text}'`)
}

/**
 * The full id of one of this node's runs, from an id, the beginning of one, or nothing when there is only one run.
 * Something that fits no own run is handed on as it is: the daemon knows what to say about it.
 */
export async function resolveRun(session: Session, given: string | undefined): Promise<string> {
  const { signal } = session.terminal
  const { runs } = await session.daemon().call(ROUTES.runs, { discover: false }, { signal })
  const own = runs.map(({ id }) => id)
  if (given === undefined) {
    const [only] = own
    if (own.length === 1 && only !== undefined) return only
    const why =
      own.length === 0
        ? 'takes part in no run: create one with `shoal run create` or join one with `shoal run join`'
        : `takes part in ${own.length} runs: name one (\`shoal run list\` shows them)`
    throw new ShoalError('usage', `this node ${why}`)
  }
  const matches = own.includes(given) ? [given] : own.filter((id) => id.startsWith(given))
  if (matches.length > 1) {
    throw new ShoalError('usage', `'${given}' fits ${matches.length} runs: write more of the id`)
  }
  return matches[0] ?? given
}
