/**
 * A run's manifest: the immutable definition of one training job. Run id = CID of its dag-cbor bytes.
 *
 * Contract: whoever holds the run id can verify the manifest, and through it the initial weights and the data,
 * from any peer. Unknown fields and versions are refused, never guessed.
 */
import { z } from 'zod'
import { CODEC_IDS, DENSE_CODEC_IDS, isSparse, SPARSE_CODEC_IDS } from '../codec/codec.ts'
import { LIMITS } from '../limits.ts'
import { TENSOR_NAME } from '../tensor/safetensors.ts'
import { overlapMax } from './overlap.ts'

const count = (max: number) => z.number().int().min(1).max(max)
const cidText = z.string().min(8).max(128)

/** A GPT with learned positions, pre-LN, tied head (see `src/model/gpt.ts`). */
export const modelSpecSchema = z.strictObject({
  kind: z.literal('gpt'),
  layers: count(128),
  heads: count(128),
  embedding: count(16_384),
  /** Tokens of one sequence. */
  context: count(8192),
  vocabulary: count(1 << 17),
  activation: z.enum(['relu-squared', 'gelu']).default('relu-squared'),
})
export type ModelSpec = z.infer<typeof modelSpecSchema>

/** A model that only its trainers know: its tensors in the order of the flat vector. */
export const externalModelSchema = z.strictObject({
  kind: z.literal('external'),
  tensors: z
    .array(
      z.strictObject({
        name: z.string().regex(TENSOR_NAME),
        shape: z.array(count(LIMITS.parameters)).max(8),
      }),
    )
    .min(1)
    .max(LIMITS.tensors),
})
export type ExternalModel = z.infer<typeof externalModelSchema>

export const innerOptimizerSchema = z.strictObject({
  kind: z.literal('adamw').default('adamw'),
  learningRate: z.number().positive().max(1).default(3e-3),
  /** Inner steps of linear warm-up, then cosine to `finalFraction`. */
  warmupSteps: z.number().int().min(0).default(40),
  finalFraction: z.number().min(0).max(1).default(0.1),
  beta1: z.number().min(0).lt(1).default(0.9),
  beta2: z.number().min(0).lt(1).default(0.99),
  epsilon: z.number().positive().max(1).default(1e-8),
  weightDecay: z.number().min(0).max(1).default(0.1),
  clipNorm: z.number().positive().max(1e6).default(1),
})
export type InnerOptimizer = z.infer<typeof innerOptimizerSchema>

/** How contributions combine and how the outer parameters move. */
export const averagingSchema = z.strictObject({
  rule: z
    .enum(['gossip-diloco', 'adapt-then-combine', 'noloco', 'diloco'])
    .default('gossip-diloco'),
  /** Group size n; 0 = by swarm size: pairs below 8 peers, else 4. Ignored by `diloco` (the whole swarm). */
  groupSize: z.number().int().min(0).max(LIMITS.groupPeers).default(0),
  /** Outer learning rate eta. */
  learningRate: z.number().positive().max(2).default(0.7),
  /** Outer momentum mu. For `noloco` this is alpha, `learningRate` is beta. */
  momentum: z.number().min(0).lt(1).default(0.8),
  /** NoLoCo's gamma: the consensus term inside its momentum. */
  consensus: z.number().positive().max(2).default(0.7),
  /** Not read by `adapt-then-combine`, which sends no pseudo-gradients. */
  pseudoGradientCodec: z.enum(CODEC_IDS).default('int4-64'),
  /** Beta of the pseudo-gradients' error feedback, 0 for none. By codec when left out: see `errorFeedbackOf`. */
  errorFeedback: z.number().min(0).max(1).optional(),
  /** Codec of the slow weights (gossip rules only). */
  parametersCodec: z
    .enum(DENSE_CODEC_IDS)
    .exclude(['int4-64'], {
      error: 'slow weights in less than 8 bits cost 6 % of the loss: use fp32, fp16 or int8-128',
    })
    .default('int8-128'),
  /** Inner steps of the next outer step done while a round's contributions are on their way; none when left out. */
  overlapSteps: z.number().int().min(0).max(100_000).optional(),
  /** All-reduce runs: each outer step exchanges one of so many fragments of the parameters in turn; 1 when left out. */
  fragments: z.number().int().min(1).max(64).optional(),
  /** `robust`: each peer tests and clips what others bring (see `defence.ts`); none when left out. */
  defence: z.enum(['none', 'robust']).optional(),
})
export type Averaging = z.infer<typeof averagingSchema>

/** Dense codecs of 4 bits and more need no error feedback; top-k loses most of a pseudo-gradient without. */
export function errorFeedbackOf({ rule, pseudoGradientCodec, errorFeedback }: Averaging): number {
  if (rule === 'adapt-then-combine') return 0
  if (errorFeedback !== undefined) return errorFeedback
  if (pseudoGradientCodec === 'sparseloco') return 0.95
  return isSparse(pseudoGradientCodec) ? 1 : 0
}

/** Fewest outer steps after which a sparse codec costs 8 peers less than a tenth of the loss: `npm run bench -- codec`. */
const SPARSE_OUTER_STEPS_MIN = {
  'topk-1024-int4': 1,
  'topk-256-int8': 100,
  'topk-64-fp32': 200,
  sparseloco: 200,
} as const

interface Schedule {
  model: { kind: 'gpt' | 'external' }
  averaging: Averaging
  innerSteps: number
  outerSteps: number
}

/** Refuses what is known to fail, naming field and remedy. */
function refuseFailing(manifest: Schedule, context: z.RefinementCtx): void {
  const { averaging, outerSteps } = manifest
  const { rule, pseudoGradientCodec: codec, momentum, consensus, learningRate } = averaging
  const refuse = (field: keyof Averaging, message: string): void =>
    context.addIssue({ code: 'custom', path: ['averaging', field], message })
  if (rule === 'noloco' && momentum > Math.min(consensus, learningRate)) {
    refuse('momentum', 'above its consensus or learningRate NoLoCo diverges: use 0.5')
  }
  refuseSchedules(manifest, refuse)
  if (!isSparse(codec)) return
  if (rule !== 'diloco') {
    refuse(
      'pseudoGradientCodec',
      `${codec} is for rule 'diloco': ${rule} sends weights too, rule 'adapt-then-combine' with a dense codec costs less`,
    )
  }
  if (averaging.errorFeedback === 0) {
    refuse('errorFeedback', `${codec} loses most of what it does not send: leave errorFeedback out`)
  }
  const exchanges = Math.floor(outerSteps / (averaging.fragments ?? 1))
  if (exchanges < SPARSE_OUTER_STEPS_MIN[codec]) {
    refuse(
      'pseudoGradientCodec',
      `${codec} needs ${SPARSE_OUTER_STEPS_MIN[codec]} outer steps, not ${exchanges}: use topk-1024-int4 or int4-64`,
    )
  }
  if (needsNoMomentum(codec) && momentum > 0) {
    refuse('momentum', `${codec} has its error feedback for outer momentum: use 0`)
  }
}

/** Refuses overlap and fragments where they are known to fail. */
function refuseSchedules(
  { averaging, innerSteps, outerSteps, model }: Schedule,
  refuse: (field: keyof Averaging, message: string) => void,
): void {
  const { rule, overlapSteps = 0, fragments = 1 } = averaging
  const max = overlapMax({ averaging, innerSteps })
  if (overlapSteps > max) {
    refuse(
      'overlapSteps',
      `a correction that comes later than a quarter of the inner steps costs 5 % of the loss and more: use ${max} at most`,
    )
  }
  if (overlapSteps > 0 && model.kind === 'external') {
    refuse('overlapSteps', 'an outside trainer does whole outer steps: leave it out')
  }
  if (averaging.defence === 'robust' && (rule !== 'gossip-diloco' || model.kind === 'external')) {
    refuse(
      'defence',
      "the tests need pseudo-gradients, weights and held-out text: use rule 'gossip-diloco' and a gpt, or leave it out",
    )
  }
  if (fragments > 1 && rule !== 'diloco') {
    refuse(
      'fragments',
      `${rule} sends weights, and weights in turns cost 10 % of the loss: use rule 'diloco' or leave it out`,
    )
  }
  if (fragments > 1 && fragments > outerSteps) {
    refuse('fragments', `${outerSteps} outer steps do not exchange all of them: use fewer`)
  }
}

/** Whether error feedback delays so much for so long that outer momentum on top overshoots. */
function needsNoMomentum(codec: unknown): boolean {
  return codec === 'sparseloco' || codec === 'topk-64-fp32'
}

export const tokenizerSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('byte') }),
  /** Characters in code-point order; the token id is the index. */
  z.strictObject({
    kind: z.literal('char'),
    vocabulary: z.array(z.string().min(1).max(2)).min(1).max(LIMITS.vocabularySize),
  }),
])
export type TokenizerSpec = z.infer<typeof tokenizerSchema>

/** Bytes cut into chunks of `LIMITS.blobBytes`, in order. */
export const chunkedSchema = z.strictObject({
  bytes: z.number().int().min(0),
  chunks: z.array(cidText).max(4096),
})
export type Chunked = z.infer<typeof chunkedSchema>

export const roundLimitsSchema = z.strictObject({
  /** The most one round may take before a peer goes on alone. */
  roundTimeoutMs: z.number().int().min(100).max(3_600_000).default(30_000),
  /** Outer steps of difference between partners that an average tolerates. */
  staleness: z.number().int().min(0).max(8).default(1),
  /** Training starts when so many peers are there … */
  minPeers: count(LIMITS.groupPeers).default(1),
  /** … or after this long, whichever is first. */
  startTimeoutMs: z.number().int().min(0).max(3_600_000).default(60_000),
  /** A checkpoint is published every so many outer steps. */
  checkpointEvery: count(1_000_000).default(10),
})
export type RoundLimits = z.infer<typeof roundLimitsSchema>

export const MANIFEST_VERSION = 1

const dataSchema = z.strictObject({
  tokenizer: tokenizerSchema,
  /** The text itself, when peers may fetch it; null when each peer brings its own. */
  text: chunkedSchema.nullable(),
  /** Share of the text's tail held out for validation. */
  validationFraction: z.number().min(0.001).max(0.5),
})

export const manifestSchema = z
  .strictObject({
    version: z.literal(MANIFEST_VERSION),
    name: z
      .string()
      .min(1)
      .max(64)
      .regex(/^[\w .:/-]+$/, 'letters, digits, space and . : / - _ only'),
    /** Whether peers list the run in the public directory. */
    public: z.boolean(),
    model: z.discriminatedUnion('kind', [modelSpecSchema, externalModelSchema]),
    /** Hash of names and shapes (see `schemaHash`), checked before parameters are averaged. */
    schemaHash: z.string().length(64),
    /** fp32 little-endian initial parameters. */
    initial: chunkedSchema,
    /** Null for an external model: its trainers bring their own. */
    data: dataSchema.nullable(),
    batchSequences: count(4096),
    innerSteps: count(100_000),
    outerSteps: count(10_000_000),
    inner: innerOptimizerSchema,
    averaging: averagingSchema,
    limits: roundLimitsSchema,
    /** Peer ids that may write the run's board. */
    admins: z.array(z.string().max(128)).max(16),
    /** Makes two runs with equal settings differ; chosen by the creator. */
    seed: z.string().min(1).max(128),
  })
  .superRefine(refuseFailing)
  .refine(({ model, data }) => (model.kind === 'gpt') === (data !== null), {
    path: ['data'],
    error: 'a gpt has data, an external model has none',
  })
/** The immutable definition of a run: its CID is the id of the run. */
export type Manifest = z.infer<typeof manifestSchema>

/**
 * NoLoCo and SparseLoCo as published; the default momentum of the other rules would make them unstable. Sparse codecs
 * are for one rule only.
 */
export function withPublishedDefaults(averaging: unknown): unknown {
  if (typeof averaging !== 'object' || averaging === null) return averaging
  const rule = 'rule' in averaging ? averaging.rule : undefined
  const codec = 'pseudoGradientCodec' in averaging ? averaging.pseudoGradientCodec : undefined
  return {
    ...(rule === 'noloco' && { momentum: 0.5 }),
    ...(SPARSE_CODEC_IDS.some((sparse) => sparse === codec) && { rule: 'diloco' }),
    ...(needsNoMomentum(codec) && { momentum: 0, learningRate: 1 }),
    ...averaging,
  }
}

/** A fresh model where the spec says nothing else. */
const FRESH_MODEL = {
  layers: 4,
  heads: 4,
  embedding: 128,
  context: 64,
  activation: 'relu-squared',
} as const

const { layers, heads, embedding, context, activation } = modelSpecSchema.shape
const modelInputSchema = z.strictObject({
  /** `external`: only outside trainers know the model; the spec says with `from` what it starts from. */
  kind: z.enum(['gpt', 'external']).default('gpt'),
  layers: layers.optional().meta({ default: FRESH_MODEL.layers }),
  heads: heads.optional().meta({ default: FRESH_MODEL.heads }),
  embedding: embedding.optional().meta({ default: FRESH_MODEL.embedding }),
  context: context.optional().meta({ default: FRESH_MODEL.context }),
  activation: activation.unwrap().optional().meta({ default: FRESH_MODEL.activation }),
})

/** The model of a spec that starts afresh. */
export function freshModel({ model }: Pick<RunSpec, 'model'>, vocabulary: number): ModelSpec {
  return modelSpecSchema.parse({ ...FRESH_MODEL, ...model, kind: 'gpt', vocabulary })
}

/** What belongs to a spec's kind of model must be there, what comes from elsewhere must not. */
function checkSources(
  spec: {
    model: z.output<typeof modelInputSchema>
    data?: string | undefined
    from?: string | undefined
    tokenizer?: string | undefined
  },
  check: z.RefinementCtx,
): void {
  const issue = (field: string, message: string): void =>
    check.addIssue({ code: 'custom', path: field.split('.'), message })
  const { kind, ...sizes } = spec.model
  const isExternal = kind === 'external'
  const origin = isExternal ? 'an external model' : '`from`'
  if (isExternal && spec.from === undefined) {
    issue('from', 'is missing: name the safetensors file that an external model starts from')
  }
  if (!isExternal && spec.data === undefined) {
    issue('data', 'is missing: name the text file or folder to train on')
  }
  if (isExternal && spec.data !== undefined) {
    issue('data', 'an external model has no data here: its trainers bring their own')
  }
  if (!isExternal && spec.from === undefined) return
  if (spec.tokenizer !== undefined) issue('tokenizer', `comes with ${origin}: leave it out`)
  const size = Object.entries(sizes).find(([, value]) => value !== undefined)?.[0]
  if (size !== undefined) issue(`model.${size}`, `comes with ${origin}: leave it out`)
}

/** What a user writes to create a run (TOML or JSON): everything has a default but the data. */
export const runSpecSchema = z
  .strictObject({
    name: manifestSchema.shape.name.default('unnamed'),
    public: z.boolean().default(true),
    /** A text file or folder, relative to the spec. */
    data: z.string().min(1).optional(),
    /**
     * What to start from instead of fresh weights: the folder of an exported model, the CID of a checkpoint, or, for an
     * external model, also a safetensors file or its CID.
     */
    from: z.string().min(1).max(4096).optional(),
    /** Whether peers may fetch the text from this node; false: each brings its own. */
    shareData: z.boolean().default(true),
    /** `char` when left out, or that of the model in `from`. */
    tokenizer: z.enum(['char', 'byte']).optional(),
    validationFraction: dataSchema.shape.validationFraction.default(0.05),
    model: modelInputSchema.prefault({}),
    batchSequences: manifestSchema.shape.batchSequences.default(12),
    innerSteps: manifestSchema.shape.innerSteps.default(20),
    outerSteps: manifestSchema.shape.outerSteps.default(50),
    inner: innerOptimizerSchema.prefault({}),
    averaging: z.preprocess(withPublishedDefaults, averagingSchema).prefault({}),
    limits: roundLimitsSchema.prefault({}),
    /** Further admins beside the creator. */
    admins: manifestSchema.shape.admins.default([]),
    seed: manifestSchema.shape.seed.optional(),
  })
  .superRefine(refuseFailing)
  .superRefine(checkSources)
/** What a run is created from, with all defaults in place. */
export type RunSpec = z.infer<typeof runSpecSchema>
/** What a run is created from, as people write it: only `data` is needed. */
export type RunSpecInput = z.input<typeof runSpecSchema>
