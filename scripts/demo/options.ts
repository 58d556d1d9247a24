/** The demo's command line. */
import { Command, CommanderError } from 'commander'
import { ShoalError } from '../../src/errors.ts'

export interface DemoOptions {
  /** The user's text; undefined for Moby Dick. */
  data: string | undefined
  peers: number
  /** Undefined as the spec says. */
  outerSteps: number | undefined
  /** Undefined for a fresh one. */
  seed: string | undefined
  /** Folder that keeps data folders, logs and model; undefined keeps the model only. */
  keep: string | undefined
  baselines: boolean
  json: boolean
}

/** Switches that are not given are absent. */
type Given = Omit<DemoOptions, 'baselines' | 'json'> & Partial<DemoOptions>

/** Processes that one machine starts for a demo. */
const PEERS_MAX = 16

/** Options from what stands after `npm run demo --`, or the text that `--help` asks for. Throws `usage`. */
export function parseDemoOptions(argv: readonly string[]): DemoOptions | { help: string } {
  const command = createCommand()
  try {
    command.parse(argv, { from: 'user' })
  } catch (thrown) {
    if (!(thrown instanceof CommanderError)) throw thrown
    if (thrown.code === 'commander.helpDisplayed') return { help: command.helpInformation() }
    throw new ShoalError('usage', thrown.message.replace(/^error: /, '').replaceAll(/\s+/g, ' '))
  }
  return { baselines: false, json: false, ...command.opts<Given>() }
}

function createCommand(): Command {
  return new Command('npm run demo --')
    .description(
      'Starts a swarm of daemons on this machine and has them train a small GPT on real text, peer to peer.',
    )
    .option('--data <path>', 'text file or folder to train on (default: Moby Dick)')
    .option('--peers <n>', 'daemons to start', wholeNumber(2, PEERS_MAX), 4)
    .option('--outer-steps <n>', 'outer steps to train for', wholeNumber(1, 100_000))
    .option('--seed <text>', 'makes identities, weights and batches the same each time')
    .option('--baselines', 'then train one node alone, and data parallel, to compare')
    .option('--json', 'print one JSON object on stdout')
    .option('--keep <folder>', 'keep data folders, logs and model there, not the model only')
    .exitOverride()
    .configureOutput({ writeOut: () => {}, writeErr: () => {} })
}

function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
    if (value >= min && value <= max) return value
    throw new ShoalError('usage', `'${text}' is not a whole number from ${min} to ${max}`)
  }
}
