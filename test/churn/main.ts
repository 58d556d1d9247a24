/**
 * `npm run test:churn`: a swarm of real daemons whose members are killed and started all the time.
 * `--seconds 600`, `--processes 10`, `--seed 1`, `--json`.
 */
import { parseArgs } from 'node:util'
import { runChurn } from './churn.ts'

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '600' },
    processes: { type: 'string', default: '10' },
    seed: { type: 'string', default: '1' },
    json: { type: 'boolean', default: false },
  },
})

const stopping = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stopping.abort())
const startedMs = performance.now()
const summary = await runChurn({
  seconds: Number(values.seconds),
  processes: Number(values.processes),
  seed: values.seed,
  signal: stopping.signal,
  onReport: (line) => {
    console.error(`${Math.round((performance.now() - startedMs) / 1000)} s: ${line}`)
  },
})
if (values.json) console.log(JSON.stringify({ seed: values.seed, ...summary }))
else {
  const { faults, ...measured } = summary
  for (const [name, value] of Object.entries(measured))
    console.log(`${name.padEnd(20)} ${String(value)}`)
  for (const fault of faults) console.log(`FAULT ${fault}`)
}
process.exitCode = summary.faults.length === 0 ? 0 : 1
