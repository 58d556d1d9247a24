/**
 * What a run keeps over a restart.
 *
 * Guarantee: the state record is replaced in one write after all its blobs are stored, so that a crash at any byte
 * resumes at a round boundary; blobs of the state before are deleted only after that. A bit that flips on the disk is
 * noticed: blobs are named by their hash, and records stand behind theirs.
 */
import { sha256 } from 'multiformats/hashes/sha2'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { OuterState } from '../optim/outer.ts'
import { createPins, type BlobReferences, type PinnedBlobs } from '../store/blob-references.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { decodeCbor, encodeCbor, parseCid } from '../store/content.ts'
import type { RecordStore } from '../store/record-store.ts'
import { digestMatches } from './contribution.ts'
import { chunkedSchema, type Manifest } from './manifest.ts'
import { loadCheckpoint, checkpointChunks } from './checkpoint.ts'
import { encodeManifest } from './run-id.ts'
import { REPUTATIONS_STORED, reputationSchema } from './reputation.ts'
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
  /** Where the inner steps go on, and what is done of them, when that is not at the outer parameters. */
  local: chunkedSchema.optional(),
  ahead: z
    .strictObject({
      steps: z.number().int().min(0),
      tokens: z.number().int().min(0),
      loss: z.number(),
    })
    .optional(),
  checkpoints: z.array(keptCheckpointSchema).max(16),
  finished: z.boolean(),
  /** The newest round, for an outside trainer that did not hear how it ended. */
  round: roundViewSchema.nullable().default(null),
  consensusDistance: z.number().nullable().default(null),
  /** Of runs with defence. */
  reputations: z.array(reputationSchema).max(REPUTATIONS_STORED).optional(),
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
  local?: Float32Array | undefined
}

type StoredVectors = Pick<
  StoredState,
  'parameters' | 'momentum' | 'residual' | 'optimizer' | 'local'
>

/** Checkpoints kept on this node; the final one is never dropped. */
export const CHECKPOINTS_KEPT = 3

export interface RunStore {
  /** Where blobs go that the next commit names: nobody deletes them before it has happened. */
  readonly blobs: BlobStore
  /** Keeps what an earlier life stored; before anything else, or a sweep may take it. Throws `state_corrupt`. */
  retainStored(): Promise<void>
  membership(): Promise<Membership | undefined>
  setMembership(membership: Membership): Promise<void>
  load(): Promise<StoredState | undefined>
  loadVectors(state: StoredState, elements: number): Promise<RunVectors>
  /** Stores the vectors' chunks; the state is not changed before `commit`. */
  storeVectors(vectors: RunVectors): Promise<StoredVectors>
  /**
   * Replaces the state, tells so, then lets go of the blobs that only the one before needed: whoever hands out the
   * committed state never hands out one that is being deleted.
   */
  commit(state: StoredState, onCommitted?: () => void): Promise<void>
  /** Keeps blobs until the returned function is called, whatever is committed meanwhile. */
  retain(cids: Iterable<string>): () => Promise<void>
  /** Keeps what its store is asked for until it is released, whatever is committed meanwhile. */
  pin(): PinnedBlobs
  /** Whether the run keeps this blob now. */
  holds(cid: string): boolean
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
  const manifestKey = `${KEY_PREFIX}${run}/manifest`
  const hold = createHold(references)
  hold.retain([run, ...manifest.initial.chunks, ...(manifest.data?.text?.chunks ?? [])])
  let releaseState: (() => Promise<void>) | undefined
  let pins = references.pin()

  return {
    blobs: {
      ...blobs,
      has: (cid) => pins.blobs.has(cid),
      put: (cid, bytes) => pins.blobs.put(cid, bytes),
    },
    async retainStored() {
      const membership = await read(records, membershipKey, membershipSchema)
      if (membership?.text) hold.retain(membership.text.chunks)
      const state = await read(records, stateKey, stateSchema)
      if (state !== undefined) releaseState = hold.retain(await blobsOf(state, blobs))
    },
    membership: () => read(records, membershipKey, membershipSchema),
    async setMembership(membership) {
      const value = await sealed(membershipSchema.parse(membership))
      // Beside its blob: without the manifest nothing else that is stored could be used.
      await records.batch([
        { put: membershipKey, value },
        { put: manifestKey, value: (await encodeManifest(manifest)).bytes },
      ])
      if (membership.text) hold.retain(membership.text.chunks)
    },
    load: () => read(records, stateKey, stateSchema),
    loadVectors: (state, elements) => loadVectors(state, elements, blobs),
    storeVectors: (vectors) => storeVectors(vectors, pins.blobs, clock),
    async commit(state, onCommitted) {
      const releaseNext = hold.retain(await blobsOf(state, blobs))
      try {
        await records.put(stateKey, await sealed(stateSchema.parse(state)))
      } catch (thrown) {
        await releaseNext()
        throw thrown
      }
      const releaseBefore = releaseState
      const pinsBefore = pins
      releaseState = releaseNext
      pins = references.pin()
      onCommitted?.()
      await releaseBefore?.()
      await pinsBefore.release()
    },
    retain: (cids) => hold.retain(cids),
    pin: () => createPins(blobs, hold.retain),
    holds: (cid) => hold.holds(cid),
    async forget() {
      const keys = [stateKey, membershipKey, manifestKey]
      await records.batch(keys.map((key) => ({ delete: key })))
      await hold.releaseAll()
      await pins.release()
    },
  }
}

/** References that are let go of one by one, or all at once. */
function createHold(
  references: BlobReferences,
): Pick<RunStore, 'retain' | 'holds'> & { releaseAll(): Promise<void> } {
  const held = new Map<() => Promise<void>, ReadonlySet<string>>()
  return {
    retain(cids) {
      const kept = new Set(cids)
      const release = references.retain(kept)
      held.set(release, kept)
      return () => {
        held.delete(release)
        return release()
      }
    },
    holds: (cid) => [...held.values()].some((kept) => kept.has(cid)),
    async releaseAll() {
      for (const release of held.keys()) {
        held.delete(release)
        await release()
      }
    },
  }
}

async function loadVectors(
  { parameters, momentum, residual, optimizer, local }: StoredVectors,
  elements: number,
  blobs: BlobStore,
): Promise<RunVectors> {
  return {
    parameters: await loadVector(parameters, elements, blobs),
    momentum: await loadVector(momentum, elements, blobs),
    residual: residual && (await loadVector(residual, elements, blobs)),
    optimizer: await loadBytes(optimizer, blobs),
    local: local && (await loadVector(local, elements, blobs)),
  }
}

async function storeVectors(
  { parameters, momentum, residual, optimizer, local }: RunVectors,
  blobs: BlobStore,
  clock: Clock,
): Promise<StoredVectors> {
  return {
    parameters: await storeVector(parameters, blobs, clock),
    momentum: await storeVector(momentum, blobs, clock),
    ...(residual && { residual: await storeVector(residual, blobs, clock) }),
    optimizer: await storeBytes(optimizer, blobs),
    ...(local && { local: await storeVector(local, blobs, clock) }),
  }
}

/** Runs this node was taking part in when it stopped, with their manifests' bytes where the record has them. */
export async function storedRuns(
  records: RecordStore,
): Promise<{ id: string; manifest: Uint8Array | undefined }[]> {
  const found = new Map(await records.list(KEY_PREFIX))
  return [...found.keys()]
    .filter((key) => key.endsWith('/membership'))
    .map((key) => {
      const id = key.split('/')[1] ?? ''
      return { id, manifest: found.get(`${KEY_PREFIX}${id}/manifest`) }
    })
}

async function blobsOf(state: StoredState, blobs: BlobStore): Promise<string[]> {
  const { parameters, momentum, residual, optimizer, local } = state
  const cids = [parameters, momentum, residual, optimizer, local].flatMap(
    (stored) => stored?.chunks ?? [],
  )
  for (const { cid } of state.checkpoints) {
    const checkpoint = await loadCheckpoint(parseCid(cid), blobs).catch(() => undefined)
    cids.push(cid, ...(checkpoint === undefined ? [] : checkpointChunks(checkpoint)))
  }
  return cids
}

/** Bytes of SHA-256. */
const DIGEST_BYTES = 32

/** The value behind its hash: the database does not notice a flipped bit. */
async function sealed(value: unknown): Promise<Uint8Array> {
  const bytes = encodeCbor(value)
  const { digest } = await sha256.digest(bytes)
  const record = new Uint8Array(digest.length + bytes.length)
  record.set(digest)
  record.set(bytes, digest.length)
  return record
}

async function read<T>(
  records: RecordStore,
  key: string,
  schema: z.ZodType<T>,
): Promise<T | undefined> {
  const record = await records.get(key)
  if (record === undefined) return undefined
  const bytes = record.subarray(DIGEST_BYTES)
  const isWhole = await digestMatches(bytes, record.subarray(0, DIGEST_BYTES))
  const parsed = isWhole ? schema.safeParse(decodeCbor(bytes, LIMITS.manifestBytes)) : undefined
  if (parsed?.success === true) return parsed.data
  const what = isWhole ? 'does not parse' : 'is damaged'
  throw new ShoalError(
    'state_corrupt',
    `the stored record ${key} ${what}: leave the run and join it again`,
  )
}
