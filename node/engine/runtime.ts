/**
 * onnxruntime behind one small interface: the native build, or the WebAssembly build where there is no native binding.
 *
 * Contract: a program reads and writes vectors of the caller; nothing is copied by the native build, and what the
 * WebAssembly build must copy is seen only in its speed. Both run the same model bytes.
 */
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-common'
import { messageOf, ShoalError } from '../../src/errors.ts'
import type { Schema } from '../../src/tensor/schema.ts'

export type Backend = 'native' | 'wasm'

/** A tensor of a program, lying in a vector of the caller. */
export interface Binding {
  data: Float32Array | Int32Array
  shape: readonly number[]
}

export type Bindings = Readonly<Record<string, Binding>>

/** One binding per tensor of a flat vector. */
export function vectorBindings(
  { entries }: Schema,
  vector: Float32Array,
  nameOf: (parameter: string) => string = (name) => name,
): Bindings {
  return Object.fromEntries(
    entries.map(({ name, offset, size, shape }) => [
      nameOf(name),
      { data: vector.subarray(offset, offset + size), shape },
    ]),
  )
}

/** Reads the bound inputs, computes, writes the bound outputs. Throws `engine_failed`. */
export type BoundProgram = () => Promise<void>

export interface Program {
  bind(inputs: Bindings, outputs: Bindings): BoundProgram
  close(): Promise<void>
}

export interface RuntimeOptions {
  threads: number
  /**
   * Whether idle threads wait for work in a busy loop. Faster on a quiet machine with several threads, far slower (and
   * twice the CPU time) on a loaded one.
   */
  spinning: boolean
}

export interface Runtime {
  readonly backend: Backend
  /** Why it is not the native build, when it was not asked for. */
  readonly reason: string | undefined
  /** Compiles an ONNX model. Throws `engine_failed`. */
  open(model: Uint8Array): Promise<Program>
}

/** `auto` prefers the native build and falls back. Throws `engine_failed` when what is asked for does not load. */
export async function loadRuntime(
  wanted: Backend | 'auto',
  options: RuntimeOptions,
): Promise<Runtime> {
  if (wanted === 'wasm') return loadWasm(options, undefined)
  try {
    return await loadNative(options)
  } catch (cause) {
    const reason = messageOf(cause).split('\n', 1)[0] ?? 'unknown'
    if (wanted === 'auto') return loadWasm(options, reason)
    throw new ShoalError(
      'engine_failed',
      `onnxruntime-node does not load (${reason}); reinstall it or choose the wasm backend`,
      { cause },
    )
  }
}

/** Of onnxruntime's own log on stderr, only what ends the process: every fault is thrown as well. */
const LOG_SEVERITY = 4

async function loadNative({ threads, spinning }: RuntimeOptions): Promise<Runtime> {
  const ort = await import('onnxruntime-node')
  ort.env.logLevel = 'fatal'
  const allowSpinning = spinning ? '1' : '0'
  const options: InferenceSession.SessionOptions = {
    executionProviders: ['cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    // Planned buffers cost two thirds more memory for at most 6 % of time.
    enableMemPattern: false,
    logSeverityLevel: LOG_SEVERITY,
    extra: {
      session: {
        intra_op: { allow_spinning: allowSpinning },
        inter_op: { allow_spinning: allowSpinning },
      },
    },
  }
  return {
    backend: 'native',
    reason: undefined,
    open: (model) => openProgram(ort, model, options, true),
  }
}

async function loadWasm({ threads }: RuntimeOptions, reason: string | undefined): Promise<Runtime> {
  const ort = await import('onnxruntime-web')
  ort.env.logLevel = 'fatal'
  ort.env.wasm.numThreads = threads
  const options: InferenceSession.SessionOptions = {
    executionProviders: ['wasm'],
    enableMemPattern: false,
    logSeverityLevel: LOG_SEVERITY,
  }
  return { backend: 'wasm', reason, open: (model) => openProgram(ort, model, options, false) }
}

interface Ort {
  InferenceSession: {
    create(model: Uint8Array, options: InferenceSession.SessionOptions): Promise<InferenceSession>
  }
  Tensor: TensorConstructor
}

async function openProgram(
  { InferenceSession: sessions, Tensor: create }: Ort,
  model: Uint8Array,
  options: InferenceSession.SessionOptions,
  /** Whether outputs that are given to `run` are written in place. */
  inPlace: boolean,
): Promise<Program> {
  const session = await failing('compile the model', () => sessions.create(model, options))
  const runOptions = { logSeverityLevel: LOG_SEVERITY } as const
  const wrap = ({ data, shape }: Binding): Tensor =>
    data instanceof Float32Array
      ? new create('float32', data, shape)
      : new create('int32', data, shape)
  const wrapAll = (bindings: Bindings): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(bindings).map(([name, binding]) => [name, wrap(binding)]))
  return {
    bind(inputs, outputs) {
      const feeds = wrapAll(inputs)
      const names = Object.keys(outputs)
      const fetches = inPlace ? wrapAll(outputs) : names
      return async () => {
        const results = await failing('run the model', () =>
          session.run(feeds, fetches, runOptions),
        )
        if (inPlace) return
        for (const name of names) copyOut(results[name], outputs[name])
      }
    },
    close: () => session.release(),
  }
}

function copyOut(result: Tensor | undefined, output: Binding | undefined): void {
  const values = result?.data
  if (output === undefined || !(values instanceof Float32Array || values instanceof Int32Array)) {
    throw new ShoalError('engine_failed', 'the model gave an output of another type')
  }
  output.data.set(values)
  result?.dispose()
}

async function failing<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    throw new ShoalError('engine_failed', `onnxruntime failed to ${what}: ${messageOf(cause)}`, {
      cause,
    })
  }
}
