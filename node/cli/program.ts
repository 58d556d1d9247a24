/** The command line: commander reads it, our faults answer it. */
import { Command as Commander, CommanderError, Option } from 'commander'
import { FAULTS, ShoalError, asFault } from '../../src/errors.ts'
import { CHECKPOINT_COMMANDS } from './checkpoint-commands.ts'
import { DAEMON_COMMAND } from './daemon-command.ts'
import { DASHBOARD_COMMAND } from './dashboard-command.ts'
import { EVENT_COMMANDS } from './event-commands.ts'
import { NETWORK_COMMANDS } from './network-commands.ts'
import { NODE_COMMANDS } from './node-commands.ts'
import { RUN_COMMANDS } from './run-commands.ts'
import { SAMPLE_COMMAND } from './sample-command.ts'
import { createSession } from './session.ts'
import type { Command, CommandOption, Terminal } from './session.ts'

export const COMMANDS: readonly Command[] = [
  DAEMON_COMMAND,
  ...RUN_COMMANDS,
  ...EVENT_COMMANDS,
  ...CHECKPOINT_COMMANDS,
  SAMPLE_COMMAND,
  DASHBOARD_COMMAND,
  ...NETWORK_COMMANDS,
  ...NODE_COMMANDS,
]

const GROUPS: Readonly<Record<string, string>> = {
  run: 'create, find, join and follow runs',
  checkpoint: 'list and export checkpoints',
}

const GLOBAL_OPTIONS: readonly CommandOption[] = [
  { flags: '--json', summary: 'print one JSON object on stdout (one per change with --watch)' },
  { flags: '--data-dir <path>', summary: 'data folder of the daemon [SHOAL_DATA_DIR]' },
  { flags: '--config <path>', summary: 'config file [SHOAL_CONFIG]' },
]

/** Runs one command line (without `node` and the script) and returns the exit code. Writes faults to stderr, one line each. */
export async function runProgram(argv: readonly string[], terminal: Terminal): Promise<number> {
  try {
    await createProgram(terminal).parseAsync([...argv], { from: 'user' })
    return 0
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0
    const fault = thrown instanceof CommanderError ? usageFault(thrown) : asFault(thrown)
    if (argv.includes('--json')) {
      const error = { code: fault.code, message: fault.message, details: fault.details }
      terminal.stderr.write(`${JSON.stringify({ error })}\n`)
    } else if (fault.code !== 'aborted') {
      terminal.stderr.write(`error: ${fault.message}\n`)
    }
    return FAULTS[fault.code].exit
  }
}

/** Commander's messages are of several lines when it has a suggestion. */
function usageFault(error: CommanderError): ShoalError {
  const isHelp = error.code === 'commander.help'
  const message = isHelp ? 'a command is missing' : error.message
  return new ShoalError(
    'usage',
    message
      .replace(/^error: /, '')
      .replaceAll(/\s*\n\s*/g, ' ')
      .trim(),
  )
}

function createProgram(terminal: Terminal): Commander {
  const program = new Commander('shoal')
    .description('train models together, peer to peer, with no coordinator')
    .configureHelp({ showGlobalOptions: true })
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.stdout.write(text),
      writeErr: (text) => terminal.stderr.write(text),
      // Faults are written by `runProgram`, in one way for all.
      outputError: () => {},
    })
  addOptions(program, GLOBAL_OPTIONS)
  program.addHelpText('after', examplesText(['daemon', 'run create spec.toml', 'run list']))
  const groups = new Map<string, Commander>()
  for (const command of COMMANDS) {
    const [first = '', second] = command.name.split(' ')
    if (second === undefined) addCommand(program, first, command, terminal)
    else addCommand(groupOf(program, groups, first), second, command, terminal)
  }
  return program
}

function groupOf(program: Commander, groups: Map<string, Commander>, name: string): Commander {
  const known = groups.get(name)
  if (known !== undefined) return known
  const group = program.command(name).description(GROUPS[name] ?? '')
  const examples = COMMANDS.filter((command) => command.name.startsWith(`${name} `))
  group.addHelpText('after', examplesText(examples.flatMap((command) => command.examples[0] ?? [])))
  groups.set(name, group)
  return group
}

function addCommand(parent: Commander, name: string, command: Command, terminal: Terminal): void {
  const added = parent.command(name).description(command.summary)
  if (command.arguments !== undefined) added.arguments(command.arguments)
  addOptions(added, command.options ?? [])
  added.addHelpText('after', examplesText(command.examples))
  added.action(async () => {
    await command.run(createSession(terminal, added.args, added.optsWithGlobals()))
  })
}

function addOptions(command: Commander, options: readonly CommandOption[]): void {
  for (const { flags, summary, repeatable = false, mandatory = false } of options) {
    const option = new Option(flags, summary).makeOptionMandatory(mandatory)
    if (repeatable) option.argParser(append)
    command.addOption(option)
  }
}

/** Commander has no earlier value at the first use of an option. */
function append(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value]
}

function examplesText(examples: readonly string[]): string {
  return `\nExamples:\n${examples.map((example) => `  shoal ${example}\n`).join('')}`
}
