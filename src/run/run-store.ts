/**
 * What a run keeps over a restart.
 *
 * Guarantee: the state record is replaced in one write after all its blobs are stored, so that a crash at any byte
 * resumes at a round boundary; blobs of the state before are deleted only after that.
 */
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { OuterState } from '../optim/outer.ts'
import type { BlobReferences } from '../store/blob-references.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { decodeCbor, encodeCbor, parseCid } from '../store/content.ts'
import type { RecordStore } from '../store/record-store.ts'
import { chunkedSchema, type Manifest } from './manifest.ts'
import { loadCheckpoint, checkpointChunks } from './checkpoint.ts'
import { TRAINER_KINDS } from './trainer.ts'
import { loadBytes, loadVector, storeBytes, storeVector } from './vector-blobs.ts'
import { roundViewSchema } from './view.ts'

const keptCheckpointSchema = z.strictObject({
  cid: z.string().max(128),
  outerStep: z.number().int().min(0),
  final: z.boolean(),
})
export type KeptCheckpoint = z.infer<typeof keptCheckpointSchema>

const stateSchema = z.strictObject({
  version: z.literal(1),
  outerStep: z.number().int().min(0),
  tokens: z.number().int().min(0),
  bytesSent: z.number().int().min(0),
  bytesReceived: z.number().int().min(0),
  rounds: z.strictObject({
    averaged: z.number().int(),
    solo: z.number().int(),
    stale: z.number().int(),
  }),
  lossStart: z.number().nullable(),
  loss: z.number().nullable(),
  validationLoss: z.number().nullable(),
  parameters: chunkedSchema,
  momentum: chunkedSchema,
  /** Of runs with error feedback. */
  residual: chunkedSchema.optional(),
  optimizer: chunkedSchema,
  checkpoints: z.array(keptCheckpointSchema).max(16),
  finished: z.boolean(),
  /** The newest round, for an outside trainer that did not hear how it ended. */
  round: roundViewSchema.nullable().default(null),
  consensusDistance: z.number().nullable().default(null),
})
export type StoredState = z.infer<typeof stateSchema>

const membershipSchema = z.strictObject({
  version: z.literal(1),
  /** This peer's own text, when it brought one. */
  text: chunkedSchema.nullable(),
  trainer: z.enum(TRAINER_KINDS).default('embedded'),
})
export type Membership = z.infer<typeof membershipSchema>

export interface RunVectors extends OuterState {
  optimizer: Uint8Array
}

type StoredVectors = Pick<StoredState, 'parameters' | 'momentum' | 'residual' | 'optimizer'>

/** Checkpoints kept on this node; the final one is never dropped. */
export const CHECKPOINTS_KEPT = 3

export interface RunStore {
  /** Keeps what an earlier life stored; before anything else, or a sweep may take it. */
  retainStored(): Promise<void>
  membership(): Promise<Membership | undefined>
  setMembership(membership: Membership): Promise<void>
  load(): Promise<StoredState | undefined>
  loadVectors(state: StoredState, elements: number): Promise<RunVectors>
  /** Stores the vectors' chunks; the state is not changed before `commit`. */
  storeVectors(vectors: RunVectors): Promise<StoredVectors>
  /** Replaces the state and lets go of the blobs that only the one before needed. */
  commit(state: StoredState): Promise<void>
  /** Keeps blobs until the returned function is called, whatever is committed meanwhile. */
  retain(cids: Iterable<string>): () => Promise<void>
  /** Lets go of everything without forgetting it: the node stops. */
  close(): void
  /** Forgets the run: state, membership and blobs. */
  forget(): Promise<void>
}

const KEY_PREFIX = 'run/'

export function createRunStore(
  run: string,
  manifest: Manifest,
  deps: { records: RecordStore; blobs: BlobStore; references: BlobReferences; clock: Clock },
): RunStore {
  const { records, blobs, references, clock } = deps
  const stateKey = `${KEY_PREFIX}${run}/state`
  const membershipKey = `${KEY_PREFIX}${run}/membership`
  const releases: (() => Promise<void>)[] = []
  const retain = (cids: Iterable<string>): (() => Promise<void>) => {
    const release = references.retain(cids)
    releases.push(release)
    return release
  }
  retain([run, ...manifest.initial.chunks, ...(manifest.data?.text?.chunks ?? [])])
  let releaseState: (() => Promise<void>) | undefined

  return {
    async retainStored() {
      const membership = await read(records, membershipKey, membershipSchema)
      if (membership?.text) retain(membership.text.chunks)
      const state = await read(records, stateKey, stateSchema)
      if (state !== undefined) releaseState = references.retain(await blobsOf(state, blobs))
    },
    membership: () => read(records, membershipKey, membershipSchema),
    async setMembership(membership) {
      await records.put(membershipKey, encodeCbor(membershipSchema.parse(membership)))
      if (membership.text) retain(membership.text.chunks)
    },
    load: () => read(records, stateKey, stateSchema),
    async loadVectors(state, elements) {
      return {
        parameters: await loadVector(state.parameters, elements, blobs),
        momentum: await loadVector(state.momentum, elements, blobs),
        residual: state.residual && (await loadVector(state.residual, elements, blobs)),
        optimizer: await loadBytes(state.optimizer, blobs),
      }
    },
    async storeVectors({ parameters, momentum, residual, optimizer }) {
      return {
        parameters: await storeVector(parameters, blobs, clock),
        momentum: await storeVector(momentum, blobs, clock),
        ...(residual && { residual: await storeVector(residual, blobs, clock) }),
        optimizer: await storeBytes(optimizer, blobs),
      }
    },
    async commit(state) {
      await records.put(stateKey, encodeCbor(stateSchema.parse(state)))
      const releaseBefore = releaseState
      releaseState = references.retain(await blobsOf(state, blobs))
      await releaseBefore?.()
    },
    retain,
    close() {
      releases.length = 0
      releaseState = undefined
    },
    async forget() {
      await records.batch([{ delete: stateKey }, { delete: membershipKey }])
      for (const release of releases) await release()
      await releaseState?.()
    },
  }
}

/** Runs this node was taking part in when it stopped. */
export async function storedRuns(records: RecordStore): Promise<string[]> {
  const found = await records.list(KEY_PREFIX)
  return found
    .filter(([key]) => key.endsWith('/membership'))
    .map(([key]) => key.split('/')[1] ?? '')
}

async function blobsOf(state: StoredState, blobs: BlobStore): Promise<string[]> {
  const { parameters, momentum, residual, optimizer } = state
  const cids = [parameters, momentum, residual, optimizer].flatMap((stored) => stored?.chunks ?? [])
  for (const { cid } of state.checkpoints) {
    const checkpoint = await loadCheckpoint(parseCid(cid), blobs).catch(() => undefined)
    cids.push(cid, ...(checkpoint === undefined ? [] : checkpointChunks(checkpoint)))
  }
  return cids
}

async function read<T>(
  records: RecordStore,
  key: string,
  schema: z.ZodType<T>,
): Promise<T | undefined> {
  const bytes = await records.get(key)
  if (bytes === undefined) return undefined
  const parsed = schema.safeParse(decodeCbor(bytes, LIMITS.manifestBytes))
  if (parsed.success) return parsed.data
  throw new ShoalError(
    'state_corrupt',
    `the stored record ${key} does not parse: leave the run and join it again`,
  )
}
