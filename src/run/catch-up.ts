/**
 * Taking over the state of others: for a late joiner, a peer that fell behind, one whose parameters differ from the
 * majority in an all-reduce run, and one that arrives after the final merge.
 *
 * Everything fetched is content-addressed and verified chunk by chunk; what is here stays until the whole is here, so
 * that a donor may die at any byte and the next goes on. A slow joiner has the donor keep its snapshot.
 */
import { z } from 'zod'
import { abortReason } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { BlobSources } from '../net/transfer.ts'
import type { Member } from '../state/shared-state.ts'
import { encodeCbor, parseCid } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import { isFiniteVector } from '../tensor/vector.ts'
import {
  fetchCheckpoint,
  vectorHash,
  type Checkpoint,
  type CheckpointFetchOptions,
} from './checkpoint.ts'
import type { KeptCheckpoint } from './run-store.ts'
import type { RunContext } from './run-context.ts'
import { LEASE_RENEWAL_MS } from './snapshot-leases.ts'
import { loadBytes, loadVector } from './vector-blobs.ts'

const snapshotReplySchema = z.strictObject({
  cid: z.string().max(128),
  outerStep: z.number().int().min(0),
  final: z.boolean(),
})

/** How fast a donor makes a snapshot at least: its optimizer's state is read and made small meanwhile. */
const ELEMENTS_PER_MS = 10_000
/** Donors asked before a catch-up gives up. */
export const DONORS_ASKED = 4
/** All-reduce runs: a checkpoint is recent enough when so many rounds since then can be replayed. */
const REPLAYED_ROUNDS = LIMITS.keptRounds / 2

export interface CaughtUp {
  checkpoint: Checkpoint
  parameters: Float32Array
  /** Null where each peer has its own. */
  momentum: Float32Array | null
  /** For the inner optimizer of a newcomer: unverified; empty when there is none, or it was not asked for. */
  optimizer: Uint8Array
}

/**
 * Members that have something to give: those at the swarm's front, then others that stay, most advanced first, then
 * those that are leaving.
 */
export function donors(run: RunContext): Member[] {
  const front = new Set(run.membership.front(run.progress.outerStep).map(({ peer }) => peer))
  const rank = (member: Member): number => (isLeaving(member) ? 2 : front.has(member.peer) ? 0 : 1)
  return run.membership
    .others()
    .filter(({ record }) => record.outerStep > 0 && record.status !== 'joining')
    .sort((a, b) => b.record.outerStep - a.record.outerStep || (a.peer < b.peer ? -1 : 1))
    .sort((a, b) => rank(a) - rank(b))
}

function isLeaving({ record }: Member): boolean {
  return record.status === 'leaving'
}

export interface CatchUpOptions {
  /** Also what the inner optimizer of a newcomer begins with. */
  withOptimizer?: boolean
  /** A state of an outer step before this one is of no use. */
  outerStepMin?: number
}

/**
 * Fetches the state of `candidates`: a checkpoint that several of them hold, or else a snapshot of one after the other.
 * Throws `blob_unavailable` when none of them could give it.
 */
export async function catchUp(
  run: RunContext,
  candidates: readonly Member[],
  signal: AbortSignal,
  { withOptimizer = false, outerStepMin = 0 }: CatchUpOptions = {},
): Promise<CaughtUp> {
  const reasons: string[] = []
  const releases: (() => Promise<void>)[] = []
  const keep = (cids: string[]): void => void releases.push(run.store.retain(cids))
  const attempts = [
    ...sharedCheckpoints(run, candidates, outerStepMin).map(
      ({ name, sources, cid, outerStep }) => ({
        name,
        fetch: () => fetchState(run, { cid, outerStep }, sources, { signal, keep, withOptimizer }),
      }),
    ),
    ...candidates.slice(0, DONORS_ASKED).map(({ peer }) => ({
      name: peer.slice(-8),
      fetch: () => fetchFrom(run, peer, outerStepMin, { signal, keep, withOptimizer }),
    })),
  ]
  try {
    for (const { name, fetch } of attempts) {
      try {
        return await fetch()
      } catch (thrown) {
        if (signal.aborted) throw abortReason(signal)
        reasons.push(`${name}: ${messageOf(thrown)}`)
      }
    }
  } finally {
    for (const release of releases) await release()
  }
  throw new ShoalError(
    'blob_unavailable',
    `no member could give the run's state (${reasons.join('; ')})`,
  )
}

/** The newest checkpoint that more than one of them has published, unless it is too old to start from. */
function sharedCheckpoints(
  run: RunContext,
  members: readonly Member[],
  outerStepMin: number,
): { name: string; sources: string[]; cid: string; outerStep: number }[] {
  const front = Math.max(0, ...members.map(({ record }) => record.outerStep))
  const replayed = run.manifest.averaging.rule === 'diloco' ? REPLAYED_ROUNDS : 0
  const oldest = Math.max(outerStepMin, front - replayed)
  const published = members
    .map(({ record: { checkpoint, checkpointStep } }) => ({
      cid: checkpoint,
      outerStep: checkpointStep,
    }))
    .filter(({ outerStep }) => outerStep !== null && outerStep >= oldest)
    .sort((a, b) => (b.outerStep ?? 0) - (a.outerStep ?? 0))
  for (const { cid, outerStep } of published) {
    const holders = members.filter(({ record }) => record.checkpoint === cid)
    if (cid === null || outerStep === null || holders.length < 2) continue
    return [{ name: 'shared checkpoint', sources: holders.map(({ peer }) => peer), cid, outerStep }]
  }
  return []
}

type FetchOptions = Required<CheckpointFetchOptions>

/** A snapshot of one donor, which keeps it as long as it is fetched; others who fetch it too help. */
async function fetchFrom(
  run: RunContext,
  donor: string,
  outerStepMin: number,
  options: FetchOptions,
): Promise<CaughtUp> {
  const snapshot = await askSnapshot(run, donor, { cid: null, outerStepMin }, options.signal)
  const done = new AbortController()
  const renewing = renew(run, donor, snapshot.cid, AbortSignal.any([options.signal, done.signal]))
  const sources = (): string[] => [
    donor,
    ...run.membership
      .others()
      .filter(({ record }) => record.status === 'joining')
      .map(({ peer }) => peer),
  ]
  try {
    return await fetchState(run, snapshot, sources, options)
  } finally {
    done.abort()
    await renewing
  }
}

/** Asks for the snapshot again and again, so that it is kept. Ends with the signal; never rejects. */
async function renew(
  run: RunContext,
  donor: string,
  cid: string,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await run.clock.sleep(LEASE_RENEWAL_MS, signal)
      await askSnapshot(run, donor, { cid, outerStepMin: 0 }, signal)
    } catch {
      // The fetch itself finds out whether the donor is still there.
    }
  }
}

async function askSnapshot(
  run: RunContext,
  peer: string,
  wanted: { cid: string | null; outerStepMin: number },
  signal: AbortSignal,
): Promise<KeptCheckpoint> {
  const request = encodeCbor({ run: run.id, ...wanted })
  const deadlineMs = DEADLINES.rpcMs + run.elements / ELEMENTS_PER_MS
  const options = { signal, deadlineMs }
  const reply = await run.network.rpc.call(peer, 'run/snapshot', request, options)
  return parseMessage(snapshotReplySchema, reply, 'snapshot reply')
}

async function fetchState(
  run: RunContext,
  { cid, outerStep }: Pick<KeptCheckpoint, 'cid' | 'outerStep'>,
  sources: BlobSources,
  options: FetchOptions,
): Promise<CaughtUp> {
  const { elements, blobs, blobExchange } = run
  const expected = { run: run.id, schemaHash: run.manifest.schemaHash, elements }
  const checkpoint = await fetchCheckpoint(parseCid(cid), expected, sources, blobExchange, options)
  if (checkpoint.outerStep !== outerStep)
    throw new ShoalError('message_invalid', 'the snapshot is of another step')
  const majority = run.hashVotes.majority(outerStep)
  if (majority !== undefined && majority !== vectorHash(checkpoint.parameters))
    throw new ShoalError('message_invalid', 'the majority of the members has other parameters')
  const parameters = await loadVector(checkpoint.parameters, elements, blobs)
  const momentum =
    checkpoint.momentum === null ? null : await loadVector(checkpoint.momentum, elements, blobs)
  if (!isFiniteVector(parameters) || (momentum !== null && !isFiniteVector(momentum)))
    throw new ShoalError('message_invalid', 'the snapshot holds numbers that are not finite')
  const optimizer =
    checkpoint.optimizer === undefined
      ? new Uint8Array()
      : await loadBytes(checkpoint.optimizer, blobs)
  return { checkpoint, parameters, momentum, optimizer }
}
