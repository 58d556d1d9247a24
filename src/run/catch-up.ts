/**
 * Taking over the state of others: for a late joiner, a peer that fell behind, one whose parameters differ from the
 * majority in an all-reduce run, and one that arrives after the final merge.
 */
import { z } from 'zod'
import { messageOf, ShoalError } from '../errors.ts'
import type { Member } from '../state/shared-state.ts'
import { encodeCbor, parseCid } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import { fetchCheckpoint, type Checkpoint } from './checkpoint.ts'
import type { KeptCheckpoint } from './run-store.ts'
import type { RunContext } from './run-context.ts'
import { loadVector } from './vector-blobs.ts'

const snapshotReplySchema = z.strictObject({
  cid: z.string().max(128),
  outerStep: z.number().int().min(0),
  final: z.boolean(),
})

/** Donors asked before a catch-up gives up. */
const DONORS_ASKED = 4

export interface CaughtUp {
  checkpoint: Checkpoint
  parameters: Float32Array
  /** Null where each peer has its own. */
  momentum: Float32Array | null
}

/** Members that have something to give, most advanced first. */
export function donors(run: RunContext): Member[] {
  return run.membership
    .others()
    .filter(({ record }) => record.outerStep > 0 && record.status !== 'joining')
    .sort((a, b) => b.record.outerStep - a.record.outerStep || (a.peer < b.peer ? -1 : 1))
}

/** Fetches the state of `candidates` in turn. Throws `blob_unavailable` when none of them could give it. */
export async function catchUp(
  run: RunContext,
  candidates: readonly Member[],
  signal: AbortSignal,
): Promise<CaughtUp> {
  const reasons: string[] = []
  for (const { peer } of candidates.slice(0, DONORS_ASKED)) {
    try {
      const snapshot = await askSnapshot(run, peer, signal)
      return await fetchSnapshot(
        run,
        snapshot,
        [peer, ...candidates.map((member) => member.peer)],
        signal,
      )
    } catch (thrown) {
      signal.throwIfAborted()
      reasons.push(`${peer.slice(-8)}: ${messageOf(thrown)}`)
    }
  }
  throw new ShoalError(
    'blob_unavailable',
    `no member could give the run's state (${reasons.join('; ')})`,
  )
}

async function askSnapshot(
  run: RunContext,
  peer: string,
  signal: AbortSignal,
): Promise<KeptCheckpoint> {
  const reply = await run.network.rpc.call(peer, 'run/snapshot', encodeCbor({ run: run.id }), {
    signal,
  })
  return parseMessage(snapshotReplySchema, reply, 'snapshot reply')
}

async function fetchSnapshot(
  run: RunContext,
  { cid, outerStep }: KeptCheckpoint,
  sources: readonly string[],
  signal: AbortSignal,
): Promise<CaughtUp> {
  const expected = { run: run.id, schemaHash: run.manifest.schemaHash, elements: run.elements }
  const checkpoint = await fetchCheckpoint(
    parseCid(cid),
    expected,
    [...new Set(sources)],
    run.blobExchange,
    { signal },
  )
  if (checkpoint.outerStep !== outerStep)
    throw new ShoalError('message_invalid', 'the snapshot is of another step')
  const release = run.store.retain([
    cid,
    ...checkpoint.parameters.chunks,
    ...(checkpoint.momentum?.chunks ?? []),
  ])
  try {
    const { elements, blobs } = run
    return {
      checkpoint,
      parameters: await loadVector(checkpoint.parameters, elements, blobs),
      momentum:
        checkpoint.momentum === null
          ? null
          : await loadVector(checkpoint.momentum, elements, blobs),
    }
  } finally {
    await release()
  }
}

/**
 * Members whose parameters this peer should take over: in an all-reduce run, a strict majority at the same outer step
 * with one hash that is not its own. Empty when there is nothing to repair.
 */
export function majorityAgainst(run: RunContext): Member[] {
  const { outerStep, parametersHash } = run.progress
  if (run.manifest.averaging.rule !== 'diloco' || parametersHash === null) return []
  const peers = run.membership
    .others()
    .filter(({ record }) => record.outerStep === outerStep && record.parametersHash !== null)
  for (const hash of new Set(peers.map(({ record }) => record.parametersHash))) {
    const holders = peers.filter(({ record }) => record.parametersHash === hash)
    if (hash !== parametersHash && holders.length * 2 > peers.length + 1) return holders
  }
  return []
}
