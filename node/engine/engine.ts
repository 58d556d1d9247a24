/**
 * The embedded engine: trains in one worker thread, so that the network never waits for a matrix product.
 *
 * Parameters and optimizer state live in the worker. They are not shared with the main thread: older releases of Node 22
 * give native modules no shared memory, and a copy per outer step costs nothing beside the steps.
 */
import { availableParallelism } from 'node:os'
import { z } from 'zod'
import { abortReason } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { silentLogger, type Logger } from '../../src/log.ts'
import { gptSchema } from '../../src/model/gpt.ts'
import type { Engine, Trainer, TrainerSpec } from '../../src/run/trainer.ts'
import type { Schema } from '../../src/tensor/schema.ts'
import { slicesOf } from '../../src/tensor/vector.ts'
import {
  evaluationSchema,
  innerStepsResultSchema,
  optimizerStateSchema,
  parametersSchema,
  type Settings,
  type Target,
} from './messages.ts'
import type { Backend } from './runtime.ts'
import { openWorkerLink, type WorkerLink } from './worker-link.ts'

/** How the embedded engine computes. */
export interface EngineOptions {
  /** `auto` (default) takes the native build of onnxruntime, or the WebAssembly build when it does not load. */
  backend?: Backend | 'auto'
  /** Threads per trainer; default all cores but one, which is the network's. */
  threads?: number
  /** Whether idle threads wait in a busy loop: faster alone on a machine, far slower beside others. Default no. */
  spinning?: boolean
  logger?: Logger
}

/** Batches of one evaluation, unless told otherwise. */
const EVALUATION_BATCHES = 16
/** Elements sent at a time: copying 4 MiB takes about a millisecond. */
const SENT_ELEMENTS = 1 << 20

/**
 * Starts the worker. Throws `engine_failed` when the wanted backend does not load. A worker that is lost fails what is
 * pending and every trainer in it with `engine_failed`; the next `open` starts a new one.
 */
export async function createEngine(options: EngineOptions = {}): Promise<Engine> {
  const { backend = 'auto', spinning = false, logger = silentLogger } = options
  const threads = options.threads ?? Math.max(1, availableParallelism() - 1)
  const settings = { backend, threads, spinning }
  let current = await start(settings, logger)
  let starting: Promise<WorkerLink> | undefined
  let closed = false
  let trainers = 0

  async function liveLink(): Promise<WorkerLink> {
    if (closed) throw new ShoalError('engine_failed', 'the engine is closed')
    if (current.alive) return current
    starting ??= start(settings, logger).finally(() => {
      starting = undefined
    })
    current = await starting
    return current
  }

  return {
    get backend() {
      return current.reason === undefined
        ? current.backend
        : `${current.backend} (the native build did not load: ${current.reason})`
    },
    async open(spec, parameters) {
      trainers += 1
      const trainer = trainers
      return openTrainer(await liveLink(), trainer, spec, parameters)
    },
    async close() {
      closed = true
      await starting?.catch(() => {})
      await current.close()
    },
  }
}

async function start(settings: Settings, logger: Logger): Promise<WorkerLink> {
  const link = await openWorkerLink(settings, (fault) => {
    logger.error('engine_worker_lost', { reason: fault.message })
  })
  const { backend, reason } = link
  if (reason !== undefined) logger.warn('engine_fallback', { backend, reason })
  return link
}

async function openTrainer(
  link: WorkerLink,
  trainer: number,
  spec: TrainerSpec,
  parameters: Float32Array,
): Promise<Trainer> {
  const schema = gptSchema(spec.model)
  requireSize(parameters, schema)
  await link.call({ kind: 'open', trainer, spec }, z.undefined())
  await write(link, trainer, 'local', parameters)
  return createTrainer(link, { trainer, schema, innerSteps: spec.innerSteps })
}

/** Calls take effect one after the other, in the order they were made. */
function createTrainer(
  link: WorkerLink,
  { trainer, schema, innerSteps }: { trainer: number; schema: Schema; innerSteps: number },
): Trainer {
  const closing = new AbortController()
  const inOrder = createQueue()
  async function enqueue<T>(work: () => Promise<T>): Promise<T> {
    if (closing.signal.aborted) throw new ShoalError('engine_failed', 'the trainer is closed')
    return inOrder(async () => {
      if (closing.signal.aborted) throw abortReason(closing.signal)
      if (!link.alive) throw new ShoalError('engine_failed', 'the engine is closed or was lost')
      return work()
    })
  }
  const orClosing = (signal: AbortSignal | undefined): AbortSignal =>
    signal === undefined ? closing.signal : AbortSignal.any([signal, closing.signal])

  return {
    schema,
    readParameters: () => enqueue(() => link.call({ kind: 'read', trainer }, parametersSchema)),
    writeParameters: (parameters) =>
      enqueue(async () => {
        requireSize(parameters, schema)
        await write(link, trainer, 'local', parameters)
      }),
    innerSteps: (outerStep, { signal, enough, onProgress, from = 0, steps } = {}) =>
      enqueue(() => {
        const options = { signal: orClosing(signal), enough, onProgress }
        const range = { from, steps: steps ?? Math.max(0, innerSteps - from) }
        const task = { kind: 'innerSteps', trainer, outerStep, ...range } as const
        return link.call(task, innerStepsResultSchema, options)
      }),
    evaluate: ({ parameters, batches = EVALUATION_BATCHES, sample, signal } = {}) =>
      enqueue(async () => {
        const target = parameters === undefined ? 'local' : 'evaluated'
        if (parameters !== undefined) {
          requireSize(parameters, schema)
          await write(link, trainer, target, parameters)
        }
        const options = { signal: orClosing(signal) }
        const task = { kind: 'evaluate', trainer, target, batches, sample } as const
        return link.call(task, evaluationSchema, options)
      }),
    exportOptimizer: () =>
      enqueue(() => link.call({ kind: 'exportOptimizer', trainer }, optimizerStateSchema)),
    importOptimizer: (state) =>
      enqueue(() => link.call({ kind: 'importOptimizer', trainer, state }, z.undefined())),
    async close() {
      if (closing.signal.aborted) return
      closing.abort(new ShoalError('aborted', 'the trainer was closed'))
      await inOrder(async () => {
        if (link.alive) await link.call({ kind: 'close', trainer }, z.undefined())
      })
    },
  }
}

function requireSize({ length }: Float32Array, { size }: Schema): void {
  if (length === size) return
  throw new ShoalError(
    'schema_mismatch',
    `${length} parameters do not fit a model of ${size}; take those of the same run`,
  )
}

/** Runs one piece of work after the other, in the order of the calls. */
function createQueue(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const result = last.then(work)
    last = result.catch(() => {})
    return result
  }
}

/** Sends parameters to the worker without holding up the event loop. */
async function write(
  link: WorkerLink,
  trainer: number,
  target: Target,
  parameters: Float32Array,
): Promise<void> {
  for (const [offset, end] of slicesOf(parameters.length, SENT_ELEMENTS)) {
    const values = parameters.slice(offset, end)
    const task = { kind: 'write', trainer, target, offset, values } as const
    await link.call(task, z.undefined(), { transfer: [values.buffer] })
  }
}
