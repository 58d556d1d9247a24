/**
 * What the engine and its worker say to each other. Every request has an id and gets exactly one `done` or `failed`.
 */
import { z } from 'zod'
import { FAULTS, isFaultCode, type FaultCode } from '../../src/errors.ts'
import { innerOptimizerSchema, modelSpecSchema } from '../../src/run/manifest.ts'

const count = z.number().int().min(1)
const tokens = z.custom<Uint16Array>((value) => value instanceof Uint16Array)
const vector = z.custom<Float32Array>((value) => value instanceof Float32Array)
const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array)

export const settingsSchema = z.strictObject({
  backend: z.enum(['auto', 'native', 'wasm']),
  threads: count.max(1024),
  spinning: z.boolean(),
})
export type Settings = z.infer<typeof settingsSchema>

/** `TrainerSpec`. */
const specSchema = z.strictObject({
  model: modelSpecSchema,
  batchSequences: count,
  inner: innerOptimizerSchema,
  innerSteps: count,
  outerSteps: count,
  dataset: z.strictObject({ train: tokens, validation: tokens }),
  streams: z.array(z.string()).min(1).readonly(),
  seed: z.string(),
})

const trainer = z.number().int()

/** Whose parameters: those in training, or others that are only evaluated. */
const target = z.enum(['local', 'evaluated'])
export type Target = z.infer<typeof target>

export const taskSchema = z.discriminatedUnion('kind', [
  /** The parameters follow in `write` tasks. */
  z.strictObject({ kind: z.literal('open'), trainer, spec: specSchema }),
  z.strictObject({ kind: z.literal('read'), trainer }),
  z.strictObject({
    kind: z.literal('write'),
    trainer,
    target,
    offset: z.number().int().min(0),
    values: vector,
  }),
  z.strictObject({
    kind: z.literal('innerSteps'),
    trainer,
    outerStep: z.number().int().min(0),
    from: z.number().int().min(0),
    steps: z.number().int().min(0),
  }),
  z.strictObject({
    kind: z.literal('evaluate'),
    trainer,
    target,
    batches: count,
    sample: z.string().optional(),
  }),
  z.strictObject({ kind: z.literal('exportOptimizer'), trainer }),
  z.strictObject({ kind: z.literal('importOptimizer'), trainer, state: bytes }),
  z.strictObject({ kind: z.literal('close'), trainer }),
])
export type Task = z.infer<typeof taskSchema>

const id = z.number().int()

/** To the worker. */
export const requestSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('task'), id, task: taskSchema }),
  /** Ends the task of this id at the next step. */
  z.strictObject({ kind: z.literal('cancel'), id }),
  /** Ends the inner steps of this id after the current one, with what is done. */
  z.strictObject({ kind: z.literal('enough'), id }),
  /** Cancels everything, closes all trainers and ends the worker. */
  z.strictObject({ kind: z.literal('shutdown') }),
])
export type Request = z.infer<typeof requestSchema>

export const progressSchema = z.strictObject({
  step: z.number(),
  loss: z.number(),
  tokens: z.number(),
})

const faultCodeSchema = z.custom<FaultCode>(isFaultCode, `one of ${Object.keys(FAULTS).join(', ')}`)

/** From the worker. The first one is `ready`, or `unready` when no runtime loads. */
export const replySchema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('ready'),
    backend: z.enum(['native', 'wasm']),
    reason: z.string().optional(),
  }),
  z.strictObject({ kind: z.literal('unready'), code: faultCodeSchema, message: z.string() }),
  z.strictObject({ kind: z.literal('progress'), id, progress: progressSchema }),
  z.strictObject({ kind: z.literal('done'), id, value: z.unknown() }),
  z.strictObject({ kind: z.literal('failed'), id, code: faultCodeSchema, message: z.string() }),
])
export type Reply = z.infer<typeof replySchema>

export const parametersSchema = vector
export const optimizerStateSchema = bytes
export const innerStepsResultSchema = z.strictObject({
  steps: z.number(),
  tokens: z.number(),
  loss: z.number(),
})
export const evaluationSchema = z.strictObject({
  loss: z.number().or(z.nan()),
  tokens: z.number(),
})
