/**
 * One worker thread and the requests to it.
 *
 * Guarantees: every call settles, with `engine_failed` when the worker is lost; the thread keeps the process alive only
 * while a call is pending; a link that is no longer alive never comes back (the engine opens a new one).
 */
import { Worker } from 'node:worker_threads'
import type { z } from 'zod'
import { abortReason, raceSignal, systemClock } from '../../src/clock.ts'
import { messageOf, ShoalError } from '../../src/errors.ts'
import { DEADLINES } from '../../src/limits.ts'
import type { InnerStepsProgress } from '../../src/run/trainer.ts'
import { replySchema, type Reply, type Request, type Settings, type Task } from './messages.ts'
import type { Backend } from './runtime.ts'

export interface CallOptions {
  /** Memory of the task that moves to the worker instead of being copied. */
  transfer?: ArrayBuffer[]
  /** Aborting ends the task at its next step; the call settles when it has. */
  signal?: AbortSignal | undefined
  /** Ends inner steps after the current one, with what is done. */
  enough?: AbortSignal | undefined
  onProgress?: ((progress: InnerStepsProgress) => void) | undefined
}

export interface WorkerLink {
  readonly backend: Backend
  /** Why the backend is not the native one, when it was not asked for. */
  readonly reason: string | undefined
  readonly alive: boolean
  call<T>(task: Task, result: z.ZodType<T>, options?: CallOptions): Promise<T>
  close(): Promise<void>
}

/** Compiled packages hold the worker as JavaScript. */
const WORKER = new URL(
  import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js',
  import.meta.url,
)

type Ready = Extract<Reply, { kind: 'ready' }>
type CallReply = Exclude<Reply, { kind: 'ready' | 'unready' }>

/**
 * Starts a worker and waits for its runtime. `onLost` hears of a worker that ends unasked. Throws `engine_failed` when
 * no runtime loads.
 */
export async function openWorkerLink(
  settings: Settings,
  onLost: (fault: ShoalError) => void,
): Promise<WorkerLink> {
  const worker = startWorker(settings)
  const pending = createPendingCalls()
  const ready = Promise.withResolvers<Ready>()
  const exited = Promise.withResolvers<void>()
  let state: 'starting' | 'alive' | 'closing' | 'ended' = 'starting'
  let crash: unknown

  worker.on('error', (thrown) => {
    crash = thrown
  })
  worker.on('exit', (code) => {
    const asked = state === 'closing'
    const cause = crash === undefined ? `exit code ${code}` : messageOf(crash)
    const fault = asked
      ? new ShoalError('aborted', 'the engine was closed')
      : new ShoalError('engine_failed', `the engine's worker ended unexpectedly: ${cause}`)
    const lost = state === 'alive'
    state = 'ended'
    ready.reject(fault)
    pending.failAll(fault)
    exited.resolve()
    if (lost) onLost(fault)
  })
  worker.on('message', (message: unknown) => {
    const { data: reply, error } = replySchema.safeParse(message)
    if (reply === undefined) {
      crash = error
      void worker.terminate()
    } else if (reply.kind === 'ready') ready.resolve(reply)
    else if (reply.kind === 'unready') ready.reject(new ShoalError(reply.code, reply.message))
    else if (pending.settle(reply) === 0) worker.unref()
  })

  async function close(): Promise<void> {
    if (state === 'ended' || state === 'closing') return exited.promise
    state = 'closing'
    worker.ref()
    worker.postMessage({ kind: 'shutdown' } satisfies Request, [])
    try {
      const signal = systemClock.deadline(DEADLINES.shutdownMs / 2, 'closing the engine')
      await raceSignal(exited.promise, signal)
    } catch {
      await worker.terminate()
    }
  }

  const startDeadline = systemClock.deadline(DEADLINES.engineStartMs, 'starting the engine')
  const started = raceSignal(ready.promise, startDeadline)
  const { backend, reason } = await started.catch(async (thrown: unknown) => {
    state = 'closing'
    await worker.terminate()
    throw thrown
  })
  state = 'alive'
  worker.unref()
  return {
    backend,
    reason,
    get alive() {
      return state === 'alive'
    },
    async call(task, result, options = {}) {
      if (state !== 'alive') throw new ShoalError('engine_failed', 'the engine is closed')
      return result.parse(await call(worker, pending, task, options))
    },
    close,
  }
}

function startWorker(settings: Settings): Worker {
  return new Worker(WORKER, {
    workerData: settings,
    name: 'shoal-engine',
    // Options of the main program hold for the worker too, but for the one that Node refuses beside a file.
    execArgv: process.execArgv.filter((option) => !option.startsWith('--input-type')),
  })
}

async function call(
  worker: Worker,
  pending: PendingCalls,
  task: Task,
  { signal, enough, onProgress, transfer = [] }: CallOptions,
): Promise<unknown> {
  if (signal?.aborted) throw abortReason(signal)
  const { id, result } = pending.add(onProgress)
  worker.ref()
  worker.postMessage({ kind: 'task', id, task } satisfies Request, transfer)
  const cancel = (): void => {
    worker.postMessage({ kind: 'cancel', id } satisfies Request, [])
  }
  signal?.addEventListener('abort', cancel, { once: true })
  const suffice = (): void => {
    worker.postMessage({ kind: 'enough', id } satisfies Request, [])
  }
  if (enough?.aborted) suffice()
  else enough?.addEventListener('abort', suffice, { once: true })
  try {
    return await result
  } catch (thrown) {
    const cancelled = thrown instanceof ShoalError && thrown.code === 'aborted'
    throw cancelled && signal?.aborted ? abortReason(signal) : thrown
  } finally {
    signal?.removeEventListener('abort', cancel)
    enough?.removeEventListener('abort', suffice)
  }
}

interface PendingCalls {
  add(onProgress: CallOptions['onProgress']): { id: number; result: Promise<unknown> }
  /** Hands a reply to whom it is for, ends the call unless it is mere progress, and returns how many are left. */
  settle(reply: CallReply): number
  failAll(fault: ShoalError): void
}

function createPendingCalls(): PendingCalls {
  const calls = new Map<number, PromiseWithResolvers<unknown> & Pick<CallOptions, 'onProgress'>>()
  let lastId = 0
  return {
    add(onProgress) {
      lastId += 1
      const resolvers = Promise.withResolvers<unknown>()
      calls.set(lastId, { ...resolvers, onProgress })
      return { id: lastId, result: resolvers.promise }
    },
    settle(reply) {
      const pending = calls.get(reply.id)
      if (reply.kind === 'progress') pending?.onProgress?.(reply.progress)
      else calls.delete(reply.id)
      if (reply.kind === 'done') pending?.resolve(reply.value)
      else if (reply.kind === 'failed') pending?.reject(new ShoalError(reply.code, reply.message))
      return calls.size
    },
    failAll(fault) {
      for (const { reject } of calls.values()) reject(fault)
      calls.clear()
    },
  }
}
