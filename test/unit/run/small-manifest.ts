import {
  freshModel,
  MANIFEST_VERSION,
  runSpecSchema,
  type Manifest,
  type RunSpecInput,
} from '../../../src/run/manifest.ts'

/** A whole manifest of the spec's defaults, whose blobs do not exist. */
export function smallManifest(overrides: Partial<RunSpecInput> = {}): Manifest {
  const spec = runSpecSchema.parse({ data: 'text.txt', ...overrides })
  return {
    version: MANIFEST_VERSION,
    name: spec.name,
    public: spec.public,
    model: freshModel(spec, 256),
    schemaHash: 'a'.repeat(64),
    initial: { bytes: 0, chunks: [] },
    data: {
      tokenizer: { kind: 'byte' },
      text: null,
      validationFraction: spec.validationFraction,
    },
    batchSequences: spec.batchSequences,
    innerSteps: spec.innerSteps,
    outerSteps: spec.outerSteps,
    inner: spec.inner,
    averaging: spec.averaging,
    limits: spec.limits,
    admins: [],
    seed: 'seed',
  }
}
