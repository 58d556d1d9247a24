/**
 * Snapshots of a run's committed state for late joiners and peers that fell behind.
 *
 * A snapshot is a checkpoint of a moment: its blobs stay here although the run goes on, for as long as somebody asks for
 * it again. So a joiner may take many outer steps to fetch it, and joiners that come together fetch the same one and
 * can help each other.
 */
import { concatBytes } from '@noble/hashes/utils.js'
import { messageOf } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { compactState } from '../optim/optimizer-state.ts'
import { checkpointChunks, encodeCheckpoint } from './checkpoint.ts'
import { checkpointOf } from './commit.ts'
import type { RunContext } from './run-context.ts'
import type { Chunked } from './manifest.ts'
import type { KeptCheckpoint, StoredState } from './run-store.ts'
import { loadBytes, storeBytes } from './vector-blobs.ts'

/** How long a snapshot is kept after it was asked for last. */
const LEASE_MS = 120_000
/** Whoever fetches one asks again so often. */
export const LEASE_RENEWAL_MS = LEASE_MS / 4
/** A snapshot so many outer steps old serves another joiner as well as a new one. */
const SHARED_FOR_STEPS = 4

export interface SnapshotLeases {
  /**
   * The snapshot `cid` as long as it is kept, else a recent one; undefined before this peer has committed the outer step
   * `outerStepMin`. Its lease starts anew.
   */
  lease(cid: string | undefined, outerStepMin: number): Promise<KeptCheckpoint | undefined>
  /** `clock.now()` when one was last asked for; -Infinity before. */
  lastAskedMs(): number
  /** Lets go of those that nobody has asked for lately. */
  expire(): Promise<void>
}

interface Lease {
  snapshot: KeptCheckpoint
  expiresMs: number
  release: () => Promise<void>
}

export function createSnapshotLeases(run: Omit<RunContext, 'snapshots'>): SnapshotLeases {
  const leases = new Map<string, Lease>()
  let making: Promise<Lease> | undefined
  let lastAskedMs = -Infinity

  async function expire(kept: number = LIMITS.snapshotsKept): Promise<void> {
    const nowMs = run.clock.now()
    const byExpiry = [...leases.values()].sort((a, b) => b.expiresMs - a.expiresMs)
    for (const [index, { snapshot, expiresMs, release }] of byExpiry.entries()) {
      if (index < kept && expiresMs > nowMs) continue
      leases.delete(snapshot.cid)
      await release()
    }
  }

  async function make(state: StoredState): Promise<Lease> {
    // Before anything is waited for: the next commit lets go of these chunks.
    const whole = checkpointOf(run, state, false)
    const release = run.store.retain([...checkpointChunks(whole), ...state.optimizer.chunks])
    const made = run.store.pin()
    const letGo = async (): Promise<void> => {
      await release()
      await made.release()
    }
    try {
      await expire(LIMITS.snapshotsKept - 1)
      const optimizer = await newcomerOptimizer(run, state.optimizer, made.blobs)
      const checkpoint = optimizer === undefined ? whole : { ...whole, optimizer }
      const { cid, bytes } = await encodeCheckpoint(checkpoint)
      await made.blobs.put(cid, bytes)
      const snapshot = { cid: cid.toString(), outerStep: state.outerStep, final: false }
      const lease = { snapshot, expiresMs: 0, release: letGo }
      leases.set(snapshot.cid, lease)
      return lease
    } catch (thrown) {
      await letGo()
      throw thrown
    }
  }

  return {
    expire: () => expire(),
    lastAskedMs: () => lastAskedMs,
    async lease(cid, outerStepMin) {
      lastAskedMs = run.clock.now()
      const state = run.committed
      const newest = run.progress.checkpoints.at(-1)
      let lease = leases.get(cid ?? '')
      if (lease === undefined && (state?.outerStep ?? -1) < outerStepMin) return undefined
      const isRecent = ({ snapshot: { outerStep } }: Lease): boolean =>
        state !== undefined &&
        outerStep + SHARED_FOR_STEPS > state.outerStep &&
        // This peer may have gone back since it was made.
        outerStep <= state.outerStep &&
        outerStep >= outerStepMin
      const recent = [...leases.values()].find(isRecent)
      // What all hold, and others can help to fetch. It stays without a lease.
      const isShared = newest?.final === true || run.manifest.averaging.rule === 'diloco'
      if (lease === undefined && isShared && newest?.outerStep === state?.outerStep) return newest
      lease ??= recent
      if (lease === undefined) {
        if (state === undefined) return undefined
        making ??= make(state).finally(() => {
          making = undefined
        })
        lease = await making
      }
      lease.expiresMs = run.clock.now() + LEASE_MS
      return lease.snapshot
    },
  }
}

/**
 * Stores what a newcomer's inner optimizer begins with; undefined where the trainer's state is not the engine's. A cold
 * optimizer costs 0.5 to 1 % of the loss where 30 % of the peers are new in every round.
 */
async function newcomerOptimizer(
  { schema, blobs, clock, logger, id }: Omit<RunContext, 'snapshots'>,
  optimizer: Chunked,
  made: BlobStore,
): Promise<Chunked | undefined> {
  if (optimizer.bytes === 0) return undefined
  try {
    const parts: Uint8Array[] = []
    for (const part of compactState(await loadBytes(optimizer, blobs), schema)) {
      parts.push(part)
      await clock.sleep(0)
    }
    return await storeBytes(concatBytes(...parts), made)
  } catch (thrown) {
    // The rest of the snapshot is of use without it.
    logger.warn('optimizer_not_given', { run: id, reason: messageOf(thrown) })
    return undefined
  }
}
