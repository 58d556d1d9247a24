/** Entry of the engine's worker thread: hosts the training sessions of one engine. */
import { parentPort, workerData, type Transferable } from 'node:worker_threads'
import { asFault, ShoalError } from '../../src/errors.ts'
import type { InnerStepsProgress } from '../../src/run/trainer.ts'
import { requestSchema, settingsSchema, type Reply, type Task } from './messages.ts'
import { loadRuntime, type Runtime } from './runtime.ts'
import { openTrainingSession, type TrainingSession } from './training-session.ts'

const port = parentPort
if (port === null) throw new ShoalError('internal', 'worker.ts runs in a worker thread only')

const sessions = new Map<number, TrainingSession>()
/** Tasks under way, by request id. */
const tasks = new Map<number, { abort: AbortController; enough: AbortController }>()

function send(reply: Reply, transfer: Transferable[] = []): void {
  port?.postMessage(reply, transfer)
}

function sessionOf(trainer: number): TrainingSession {
  const session = sessions.get(trainer)
  if (session === undefined) throw new ShoalError('engine_failed', 'the trainer is closed')
  return session
}

async function perform(
  runtime: Runtime,
  id: number,
  task: Task,
  { signal, enough }: { signal: AbortSignal; enough: AbortSignal },
): Promise<unknown> {
  switch (task.kind) {
    case 'open':
      sessions.set(task.trainer, await openTrainingSession(runtime, task.spec))
      return undefined
    case 'read':
      return sessionOf(task.trainer).read()
    case 'write':
      return sessionOf(task.trainer).write(task.target, task.offset, task.values)
    case 'innerSteps': {
      const onProgress = (progress: InnerStepsProgress): void =>
        send({ kind: 'progress', id, progress })
      return sessionOf(task.trainer).innerSteps(task, { signal, enough, onProgress })
    }
    case 'evaluate':
      return sessionOf(task.trainer).evaluate(task, signal)
    case 'exportOptimizer':
      return sessionOf(task.trainer).exportOptimizer()
    case 'importOptimizer':
      return sessionOf(task.trainer).importOptimizer(task.state)
    case 'close': {
      const session = sessions.get(task.trainer)
      sessions.delete(task.trainer)
      return session?.close()
    }
    default:
      throw new ShoalError('internal', 'the engine got a task of an unknown kind')
  }
}

async function handle(runtime: Runtime, id: number, task: Task): Promise<void> {
  const control = { abort: new AbortController(), enough: new AbortController() }
  tasks.set(id, control)
  try {
    const signals = { signal: control.abort.signal, enough: control.enough.signal }
    const value = await perform(runtime, id, task, signals)
    send({ kind: 'done', id, value }, bufferOf(value))
  } catch (thrown) {
    const { code, message } = asFault(thrown)
    send({ kind: 'failed', id, code, message })
  } finally {
    tasks.delete(id)
  }
}

/** The memory of a vector: it moves to the main thread instead of being copied. */
function bufferOf(value: unknown): Transferable[] {
  return ArrayBuffer.isView(value) && value.buffer instanceof ArrayBuffer ? [value.buffer] : []
}

async function shutdown(): Promise<void> {
  for (const { abort } of tasks.values()) abort.abort()
  await Promise.allSettled([...sessions.values()].map((session) => session.close()))
  // Not left to the event loop: threads of the WebAssembly build would keep it going.
  process.exit(0)
}

async function main(): Promise<void> {
  const runtime = await loadRuntime(...settings())
  port?.on('message', (message: unknown) => {
    const request = requestSchema.parse(message)
    if (request.kind === 'task') void handle(runtime, request.id, request.task)
    else if (request.kind === 'cancel') tasks.get(request.id)?.abort.abort()
    else if (request.kind === 'enough') tasks.get(request.id)?.enough.abort()
    else void shutdown()
  })
  const { backend, reason } = runtime
  send({ kind: 'ready', backend, ...(reason === undefined ? {} : { reason }) })
}

function settings(): Parameters<typeof loadRuntime> {
  const { backend, ...options } = settingsSchema.parse(workerData)
  return [backend, options]
}

main().catch((thrown: unknown) => {
  const { code, message } = asFault(thrown)
  send({ kind: 'unready', code, message })
})
