/** The contenders of `npm run bench -- train`: each trains the same model on the same batches in its own process. */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'
import { createStatusBlock } from '../../node/progress.ts'
import { trainingWindows } from '../../src/data/sampler.ts'
import { gptSchema } from '../../src/model/gpt.ts'
import { initialParameters } from '../../src/model/initial-parameters.ts'
import {
  innerOptimizerSchema,
  type InnerOptimizer,
  type ModelSpec,
} from '../../src/run/manifest.ts'
import { float32Bytes, float32Vector } from '../../src/tensor/float32-bytes.ts'
import { norm, subtract } from '../../src/tensor/vector.ts'
import { corpusDataset } from './corpus.ts'
import { startJsonProcess, type JsonProcess } from './json-process.ts'

export interface Size {
  name: string
  model: Omit<ModelSpec, 'activation'>
  batchSequences: number
  /** Rounds measured at most; one more comes before them to warm up. */
  rounds: number
  stepsPerRound: number
  contenders: readonly Contender[]
}

interface Contender {
  engine: 'native' | 'wasm' | 'pytorch'
  threads: number
}

const gpt = { kind: 'gpt', vocabulary: 65 } as const
const BOTH: readonly Contender[] = [1, 2].flatMap((threads) => [
  { engine: 'native', threads },
  { engine: 'pytorch', threads },
])

const SMALL: Size = {
  name: 'small',
  model: { ...gpt, layers: 4, heads: 4, embedding: 128, context: 64 },
  batchSequences: 12,
  rounds: 15,
  stepsPerRound: 10,
  contenders: [...BOTH, { engine: 'wasm', threads: 1 }],
}

const BIG: Size = {
  name: 'big',
  model: { ...gpt, layers: 6, heads: 6, embedding: 384, context: 256 },
  batchSequences: 8,
  rounds: 5,
  stepsPerRound: 2,
  contenders: BOTH,
}

/** 809 856 and 10 770 816 parameters. */
export const SIZES: readonly Size[] = [SMALL, BIG]
export const QUICK_SIZES: readonly Size[] = [
  { ...SMALL, rounds: 7, contenders: BOTH.filter(({ threads }) => threads === 1) },
]

/** On a busy machine a size ends after this time, when it has had the least of rounds. */
const MEASURING_MS = 90_000
const LEAST_ROUNDS = 3

/** A constant learning rate: the schedule is not what is compared. */
const INNER: InnerOptimizer = innerOptimizerSchema.parse({
  learningRate: 1e-3,
  warmupSteps: 0,
  finalFraction: 1,
  beta2: 0.95,
})
const SEED = 'bench'
const STREAM = 'bench'

export interface Row {
  size: string
  engine: string
  threads: number
  parameters: number
  /** Per inner step: medians over rounds, and the best round. */
  cpuMs: number
  wallMs: number
  wallBestMs: number
  tokensPerSecond: number
  tokensPerCpuSecond: number
  peakBytes: number
  /** From the start of the process to the first answer after a round. */
  startMs: number
  firstLoss: number
  lastLoss: number
  /** Distance of the first gradient from the native engine's, as a share of its norm. */
  gradientError: number
  gemmGflops: number | undefined
}

interface Runner {
  contender: Contender
  process: JsonProcess
  startMs: number
  version: string
  gemmGflops: number | undefined
  gradient: Float32Array
  firstLoss: number
  rounds: Round[]
}

const readySchema = z.object({ version: z.string(), gemmGflops: z.number().optional() })
const gradientSchema = z.object({ loss: z.number() })
const roundSchema = z.object({
  cpuMs: z.number(),
  wallMs: z.number(),
  loss: z.number(),
  peakBytes: z.number(),
})
type Round = z.infer<typeof roundSchema>

/** All contenders of one size, round by round in turns, so that a busy neighbour hits them alike. */
export async function measure(
  size: Size,
  activation: ModelSpec['activation'],
  python: string | undefined,
  folder: string,
  signal: AbortSignal,
): Promise<Row[]> {
  const model: ModelSpec = { ...size.model, activation }
  const files = await writeFiles(size, model, folder)
  const contenders = size.contenders.filter(({ engine }) => engine !== 'pytorch' || python)
  const runners: Runner[] = []
  const status = createStatusBlock(process.stderr)
  try {
    for (const contender of contenders) {
      status.draw([`${size.name}: starting ${contender.engine}, ${contender.threads} threads`])
      runners.push(await start(contender, size, model, files, python ?? '', signal))
    }
    const startedMs = performance.now()
    for (let round = 1; round <= size.rounds; round += 1) {
      const isLate = performance.now() - startedMs > MEASURING_MS
      if (isLate && round > LEAST_ROUNDS) break
      for (const runner of runners) {
        status.draw([`${size.name}: round ${round} of ${size.rounds}, ${runner.contender.engine}`])
        const request = { command: 'steps', round }
        runner.rounds.push(await runner.process.ask(request, roundSchema, signal))
      }
    }
    return runners.map((runner) => rowOf(size, model, runner, runners[0]?.gradient))
  } finally {
    status.draw([])
    status.end()
    await Promise.all(runners.map((runner) => runner.process.end()))
  }
}

interface Files {
  parameters: string
  batches: string
  gradient: string
}

/** Initial parameters, and for every step tokens and targets: int32, batch after batch. */
async function writeFiles(size: Size, model: ModelSpec, folder: string): Promise<Files> {
  const { context } = model
  const { batchSequences: sequences, rounds, stepsPerRound } = size
  const { train } = await corpusDataset(context)
  const batch = sequences * context
  const batches = new Int32Array((rounds + 1) * stepsPerRound * 2 * batch)
  let at = 0
  for (let outerStep = 0; outerStep <= rounds; outerStep += 1) {
    for (let innerStep = 0; innerStep < stepsPerRound; innerStep += 1) {
      const position = { seed: SEED, stream: STREAM, outerStep, innerStep }
      const windows = trainingWindows(position, { tokens: train.length, context, sequences })
      for (const [row, first] of windows.entries()) {
        batches.set(train.subarray(first, first + context), at + row * context)
        batches.set(train.subarray(first + 1, first + 1 + context), at + batch + row * context)
      }
      at += 2 * batch
    }
  }
  const files = {
    parameters: join(folder, `${size.name}.parameters`),
    batches: join(folder, `${size.name}.batches`),
    gradient: join(folder, `${size.name}.gradient`),
  }
  await writeFile(files.parameters, float32Bytes(initialParameters(model, SEED)))
  await writeFile(files.batches, new Uint8Array(batches.buffer))
  return files
}

/** Starts a contender, takes its gradient at the initial parameters and runs the round that warms up. */
async function start(
  contender: Contender,
  size: Size,
  model: ModelSpec,
  files: Files,
  python: string,
  signal: AbortSignal,
): Promise<Runner> {
  const { engine, threads } = contender
  const startedMs = performance.now()
  const child = engine === 'pytorch' ? startPyTorch(python, threads) : startEngine()
  try {
    const setup = {
      backend: engine,
      threads,
      model,
      entries: gptSchema(model).entries,
      inner: INNER,
      batchSequences: size.batchSequences,
      tokens: size.batchSequences * model.context,
      rounds: size.rounds + 1,
      stepsPerRound: size.stepsPerRound,
      stream: STREAM,
      seed: SEED,
      parameters: files.parameters,
      batches: files.batches,
    }
    const { version, gemmGflops } = await child.ask(setup, readySchema, signal)
    const gradientRequest = { command: 'gradient', path: files.gradient }
    const { loss: firstLoss } = await child.ask(gradientRequest, gradientSchema, signal)
    const gradient = float32Vector(await readFile(files.gradient)).slice()
    await child.ask({ command: 'steps', round: 0 }, roundSchema, signal)
    const startMs = performance.now() - startedMs
    return {
      contender,
      process: child,
      startMs,
      version,
      gemmGflops,
      gradient,
      firstLoss,
      rounds: [],
    }
  } catch (thrown) {
    await child.end()
    throw thrown
  }
}

const scriptPath = (file: string): string => fileURLToPath(new URL(file, import.meta.url))

function startEngine(): JsonProcess {
  return startJsonProcess(process.execPath, [scriptPath('./train-engine.ts')])
}

function startPyTorch(python: string, threads: number): JsonProcess {
  // `torch.set_num_threads` does not reach every BLAS. Idle threads sleep, as the engine's do: those that wait in a
  // busy loop take hundreds of times the CPU time on a machine that others use too.
  const count = String(threads)
  const environment = {
    OMP_NUM_THREADS: count,
    OPENBLAS_NUM_THREADS: count,
    MKL_NUM_THREADS: count,
    OMP_WAIT_POLICY: 'PASSIVE',
    OPENBLAS_THREAD_TIMEOUT: '4',
  }
  return startJsonProcess(python, [scriptPath('./train.py')], environment)
}

function rowOf(
  size: Size,
  model: ModelSpec,
  runner: Runner,
  reference: Float32Array | undefined,
): Row {
  const { contender, rounds, gradient } = runner
  const tokens = size.batchSequences * model.context
  const cpuMs = median(rounds.map((round) => round.cpuMs))
  const wallMs = median(rounds.map((round) => round.wallMs))
  return {
    size: size.name,
    engine: runner.version,
    threads: contender.threads,
    parameters: gradient.length,
    cpuMs,
    wallMs,
    wallBestMs: Math.min(...rounds.map((round) => round.wallMs)),
    tokensPerSecond: (1000 * tokens) / wallMs,
    tokensPerCpuSecond: (1000 * tokens) / cpuMs,
    peakBytes: Math.max(...rounds.map((round) => round.peakBytes)),
    startMs: runner.startMs,
    firstLoss: runner.firstLoss,
    lastLoss: rounds.at(-1)?.loss ?? Number.NaN,
    gradientError:
      reference === undefined ? Number.NaN : norm(subtract(gradient, reference)) / norm(reference),
    gemmGflops: runner.gemmGflops,
  }
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? Number.NaN
  return (lower + upper) / 2
}
