/** Routes of runs: created, joined, shown, left; their members, boards and checkpoints. */
import { z } from 'zod'
import { DEADLINES } from '../../src/limits.ts'
import { manifestSchema, runSpecSchema } from '../../src/run/manifest.ts'
import { TRAINER_KINDS } from '../../src/run/trainer.ts'
import { checkpointViewSchema, runListingSchema, runViewSchema } from '../../src/run/view.ts'
import { peerRecordSchema } from '../../src/state/record.ts'
import { absolutePath, oneRun, switched, type Route } from './route.ts'

const boardValueSchema = z.union([z.string().max(4096), z.number(), z.boolean(), z.null()])
const boardSchema = z.object({ board: z.record(z.string(), boardValueSchema) })

/** Default: the embedded engine where it knows the model. */
const trainer = z.enum(TRAINER_KINDS).optional()

export const RUN_ROUTES = {
  runs: {
    method: 'GET',
    path: '/v1/runs',
    summary: 'Own runs, and with `discover` also public ones found through the DHT.',
    input: z.strictObject({ discover: switched.default(false) }),
    output: z.object({ runs: z.array(runListingSchema) }),
    deadlineMs: 2 * DEADLINES.findProvidersMs + DEADLINES.rpcMs,
    command: 'run list',
  },
  createRun: {
    method: 'POST',
    path: '/v1/runs',
    summary:
      'Creates a run from a spec whose data is an absolute path on this machine. With a `seed` in it a call that is repeated is answered with the same run.',
    input: z.strictObject({ spec: runSpecSchema, trainer }),
    output: runViewSchema,
    deadlineMs: DEADLINES.apiLongMs,
    invalid: 'spec_invalid',
    command: 'run create',
  },
  joinRun: {
    method: 'POST',
    path: '/v1/runs/join',
    summary:
      'Takes part in a run named by its id or `shoal:` link, with own data where it shares none.',
    input: z.strictObject({
      run: z.string().min(1).max(4096),
      data: absolutePath.optional(),
      trainer,
    }),
    output: runViewSchema,
    deadlineMs: DEADLINES.apiLongMs,
    command: 'run join',
  },
  showRun: {
    method: 'GET',
    path: '/v1/runs/{run}',
    summary: 'State of one run.',
    input: oneRun,
    output: runViewSchema,
    command: 'run show',
  },
  leaveRun: {
    method: 'POST',
    path: '/v1/runs/{run}/leave',
    summary: 'Takes part no longer.',
    input: oneRun,
    output: z.object({ left: z.string() }),
    command: 'run leave',
  },
  invite: {
    method: 'GET',
    path: '/v1/runs/{run}/invite',
    summary: 'The link that lets others join.',
    input: oneRun,
    output: z.object({ link: z.string() }),
    command: 'invite',
  },
  board: {
    method: 'GET',
    path: '/v1/runs/{run}/board',
    summary: "Entries of the admins' board.",
    input: oneRun,
    output: boardSchema,
    command: { none: '`shoal run show --json` has it' },
  },
  writeBoard: {
    method: 'POST',
    path: '/v1/runs/{run}/board',
    summary: 'Writes an entry of the board, or deletes it when no value is given. Admins only.',
    input: oneRun.extend({
      key: z.string().min(1).max(64),
      value: boardValueSchema.optional(),
    }),
    output: boardSchema,
    command: { none: 'admins of a run script it' },
  },
  checkpoints: {
    method: 'GET',
    path: '/v1/runs/{run}/checkpoints',
    summary: 'Checkpoints that this node holds.',
    input: oneRun,
    output: z.object({ checkpoints: z.array(checkpointViewSchema) }),
    command: 'checkpoint list',
  },
  exportCheckpoint: {
    method: 'POST',
    path: '/v1/runs/{run}/checkpoints/export',
    summary: 'Writes a checkpoint, by default the newest, as a Hugging Face style folder.',
    input: oneRun.extend({ folder: absolutePath, checkpoint: z.string().max(128).optional() }),
    output: z.object({
      folder: z.string(),
      files: z.array(z.object({ name: z.string(), bytes: z.number() })),
    }),
    deadlineMs: DEADLINES.apiLongMs,
    command: 'checkpoint export',
  },
  manifest: {
    method: 'GET',
    path: '/v1/runs/{run}/manifest',
    summary: 'The immutable definition of a run.',
    input: oneRun,
    output: manifestSchema,
    command: { none: '`shoal run show` has what people look for' },
  },
  members: {
    method: 'GET',
    path: '/v1/runs/{run}/peers',
    summary: 'Records of all members of a run, as each has signed its own.',
    input: oneRun,
    output: z.object({
      peers: z.array(
        z.object({ peer: z.string(), record: peerRecordSchema.strip(), ageMs: z.number() }),
      ),
    }),
    command: { none: '`shoal run show` has what people look for' },
  },
} as const satisfies Record<string, Route>
