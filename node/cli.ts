#!/usr/bin/env node
/** The `shoal` program. */
import { runProgram } from './cli/program.ts'

const interrupt = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    // The first asks for a clean end, the second does not wait for it.
    if (interrupt.signal.aborted) process.exit(130)
    interrupt.abort()
  })
}
// Node 22 calls its SQLite experimental; whoever starts a daemon can do nothing about that.
process.removeAllListeners('warning')
process.on('warning', (warning) => {
  if (warning.name !== 'ExperimentalWarning') process.stderr.write(`${warning.stack}\n`)
})
// `shoal run list | head -1` closes our output early, and that is no fault.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 0 : 1)
})

const code = await runProgram(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  cwd: process.cwd(),
  signal: interrupt.signal,
})
// Idle connections and threads must not keep a finished command alive; what was written must arrive.
process.stdout.write('', () => process.exit(code))
