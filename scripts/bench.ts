/** `npm run bench -- NAME [options]`: the benches by name; without a name, the list of them. */
import { nearest } from '../node/validation.ts'
import { asFault, FAULTS, ShoalError } from '../src/errors.ts'

interface Bench {
  readonly name: string
  /** One line. */
  readonly summary: string
  /** What it does and its options. */
  readonly usage: string
  /** Returns the exit code: 1 when a bar is missed. Rejects with a fault, and soon when aborted. */
  run(args: readonly string[], signal: AbortSignal): Promise<number>
}

/** Loaded when needed: each brings an engine along. */
const BENCHES: Readonly<Record<string, () => Promise<Bench>>> = {
  api: () => import('./bench/api.ts'),
  averaging: () => import('./bench/averaging.ts'),
  codec: () => import('./bench/codec.ts'),
  convergence: () => import('./bench/convergence.ts'),
  net: () => import('./bench/net.ts'),
  train: () => import('./bench/train.ts'),
}

async function main(args: readonly string[]): Promise<number> {
  const interrupted = new AbortController()
  const interrupt = (): void => {
    if (interrupted.signal.aborted) process.exit(FAULTS.aborted.exit)
    process.stderr.write('stopping; once more ends at once\n')
    interrupted.abort(new ShoalError('aborted', 'interrupted'))
  }
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt)
  try {
    const [name, ...rest] = args
    if (name === undefined || isHelp(name)) return await list()
    const load = Object.hasOwn(BENCHES, name) ? BENCHES[name] : undefined
    if (load === undefined) throw unknownBench(name)
    const bench = await load()
    if (rest.some(isHelp)) {
      process.stdout.write(bench.usage)
      return 0
    }
    return await bench.run(rest, interrupted.signal)
  } catch (thrown) {
    const fault = asFault(thrown)
    process.stderr.write(`${fault.code}: ${fault.message}\n`)
    return FAULTS[fault.code].exit
  }
}

function isHelp(argument: string): boolean {
  return argument === '--help' || argument === '-h'
}

async function list(): Promise<number> {
  const benches = await Promise.all(Object.values(BENCHES).map((load) => load()))
  const width = Math.max(...benches.map(({ name }) => name.length))
  process.stdout.write('npm run bench -- NAME [options]\n\n')
  for (const { name, summary } of benches) {
    process.stdout.write(`  ${name.padEnd(width)}  ${summary}\n`)
  }
  return 0
}

function unknownBench(name: string): ShoalError {
  const names = Object.keys(BENCHES)
  const guess = nearest(name, names)
  const remedy = guess === undefined ? `known are ${names.join(', ')}` : `did you mean '${guess}'?`
  return new ShoalError('usage', `unknown bench '${name}': ${remedy}`)
}

process.exitCode = await main(process.argv.slice(2))
