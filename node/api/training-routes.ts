/** Routes of outside trainers, and of averages beside any run. Parameters travel as safetensors. */
import { z } from 'zod'
import { DEADLINES, LIMITS } from '../../src/limits.ts'
import { AVERAGING_CODECS } from '../../src/run/averaging-groups.ts'
import { listed, numeric, oneRun, type Route } from './route.ts'

const count = z.number().int().min(0)
/** Parameters of the largest model, and a header of any reason. */
const PARAMETERS_BYTES_MAX = 4 * LIMITS.parameters + (1 << 20)
const AVERAGED_BYTES_MAX = 4 * LIMITS.averagedElements + (1 << 20)
const FOR_SCRIPTS = { none: 'scripts train, people do not' }

export const TRAINING_ROUTES = {
  parameters: {
    method: 'GET',
    path: '/v1/runs/{run}/parameters',
    summary:
      'The newest outer parameters as safetensors, and the outer step that starts from them. Waits while a round of an outside trainer is under way.',
    input: oneRun,
    output: z.object({ outerStep: numeric(count) }),
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: { none: '`shoal checkpoint export` writes a model as a folder' },
  },
  outerStep: {
    method: 'POST',
    path: '/v1/runs/{run}/outer-step',
    summary:
      'Hands in the local parameters of an outer step, waits for its round and answers with the next outer parameters. A step that is committed already gets its result again; another step than the run is at is a conflict that names it.',
    input: oneRun.extend({
      outerStep: numeric(count),
      /** What the contribution is weighed by. */
      tokens: numeric(z.number().int().min(1).max(Number.MAX_SAFE_INTEGER)),
      loss: numeric(z.number()),
      /** Default: those of the manifest. */
      innerSteps: numeric(z.number().int().min(1).max(1_000_000)).optional(),
    }),
    body: {
      what: 'safetensors of the local parameters: names, shapes and F32 as in the run',
      bytesMax: PARAMETERS_BYTES_MAX,
    },
    output: z.object({
      outerStep: numeric(count),
      nextOuterStep: numeric(count),
      outcome: z.enum(['averaged', 'solo', 'stale']),
      partners: listed,
      consensusDistance: numeric(z.number()).optional(),
    }),
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
  progress: {
    method: 'POST',
    path: '/v1/runs/{run}/progress',
    summary:
      'A sign of life of an outside trainer, every few seconds, with what it has done of this outer step. Answers whether the rest of the swarm is done with it.',
    input: oneRun.extend({
      innerStep: count.optional(),
      loss: z.number().optional(),
      tokens: count.optional(),
    }),
    output: z.object({ enough: z.boolean() }),
    command: FOR_SCRIPTS,
  },
  average: {
    method: 'POST',
    path: '/v1/average/{group}',
    summary:
      'Gives tensors to a round of a group, waits for the other peers that give to it, and answers with the weighted mean of all. Needs no run. A round that is repeated gets its result again.',
    input: z.strictObject({
      group: z.string().regex(/^[\w.:/-]{1,64}$/),
      /** Counts up: what a group gives to one round is averaged together. */
      round: numeric(count),
      weight: numeric(z.number().int().min(1).max(Number.MAX_SAFE_INTEGER)).default(1),
      /** So many peers are needed, this one included. */
      minPeers: numeric(z.number().int().min(1).max(LIMITS.groupPeers)).default(2),
      /** Peers are averaged in groups of so many, drawn anew in every round; all together when left out. */
      groupSize: numeric(z.number().int().min(1).max(LIMITS.groupPeers)).optional(),
      /** How long to wait for them. */
      waitMs: numeric(count.max(240_000)).default(60_000),
      codec: z.enum(AVERAGING_CODECS).default('fp32'),
    }),
    body: { what: 'safetensors of any F32 tensors', bytesMax: AVERAGED_BYTES_MAX },
    output: z.object({ round: numeric(count), peers: listed }),
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: FOR_SCRIPTS,
  },
} as const satisfies Record<string, Route>
