/** Pulling a contribution, and asking what a peer collected: the asking side of `exchange.ts`. */
import { ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { PeerRpc } from '../net/network.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import {
  contributionBytes,
  digestMatches,
  type ChunkPlan,
  type Contribution,
  type ContributionHeader,
  type RoundKey,
} from './contribution.ts'
import { offerReplySchema, POLL_MS, setReplySchema, type Refusal } from './exchange-messages.ts'

export type Pulled =
  | { kind: 'contribution'; contribution: Contribution; bytes: number }
  | { kind: 'refused'; refusal: Refusal; message: string; outerStep: number | null }

export interface PullOptions {
  plan: readonly ChunkPlan[]
  schemaHash: string
  signal: AbortSignal
  /** Whether to wait for a partner that has not finished its inner steps. */
  patient: boolean
}

export async function pullContribution(
  rpc: PeerRpc,
  run: string,
  peer: string,
  key: RoundKey,
  options: PullOptions,
): Promise<Pulled> {
  try {
    const answer = await askHeader(rpc, run, peer, key, options)
    if ('kind' in answer) return answer
    const problem = headerProblem(answer, run, key, options)
    if (problem !== undefined) return { kind: 'refused', ...problem, outerStep: null }
    const chunks = await pullChunks(rpc, run, peer, key, answer, options)
    const bytes = contributionBytes(options.plan)
    return {
      kind: 'contribution',
      contribution: { peer, header: answer, plan: options.plan, chunks },
      bytes,
    }
  } catch (thrown) {
    const code = thrown instanceof ShoalError ? thrown.code : 'internal'
    const refusal: Refusal =
      code === 'message_invalid' || code === 'blob_corrupt'
        ? 'invalid'
        : code === 'limit_exceeded'
          ? 'quota'
          : 'unreachable'
    const message = thrown instanceof Error ? thrown.message : String(thrown)
    return { kind: 'refused', refusal, message, outerStep: null }
  }
}

async function askHeader(
  rpc: PeerRpc,
  run: string,
  peer: string,
  key: RoundKey,
  { signal, patient }: PullOptions,
): Promise<ContributionHeader | Extract<Pulled, { kind: 'refused' }>> {
  for (;;) {
    const waitMs = patient ? POLL_MS : 0
    const request = encodeCbor({ run, ...key, waitMs })
    const reply = await rpc.call(peer, 'round/offer', request, {
      signal,
      deadlineMs: waitMs + DEADLINES.rpcMs,
    })
    const answer = parseMessage(offerReplySchema, reply, 'answer to an offer')
    if ('header' in answer) return answer.header
    if (answer.refusal === 'not_ready' && patient && !signal.aborted) continue
    return {
      kind: 'refused',
      refusal: answer.refusal,
      message: `outer step ${answer.outerStep} there, ${key.outerStep} here`,
      outerStep: answer.outerStep,
    }
  }
}

function headerProblem(
  header: ContributionHeader,
  run: string,
  key: RoundKey,
  { plan, schemaHash }: PullOptions,
): { refusal: Refusal; message: string } | undefined {
  if (header.schemaHash !== schemaHash) return { refusal: 'schema', message: 'another schema hash' }
  if (header.run !== run || header.outerStep !== key.outerStep || header.phase !== key.phase) {
    return { refusal: 'invalid', message: 'the header is of another round' }
  }
  if (header.digests.length !== plan.length)
    return { refusal: 'invalid', message: 'wrong number of chunks' }
  return undefined
}

/** Pulls all chunks, `LIMITS.chunksInFlight` at a time; the first failure stops the rest. */
async function pullChunks(
  rpc: PeerRpc,
  run: string,
  peer: string,
  key: RoundKey,
  header: ContributionHeader,
  { plan, signal }: PullOptions,
): Promise<Uint8Array[]> {
  const chunks: Uint8Array[] = Array.from({ length: plan.length })
  const failure = new AbortController()
  const either = AbortSignal.any([signal, failure.signal])
  let next = 0
  const puller = async (): Promise<void> => {
    for (let index = next++; index < plan.length; index = next++) {
      const chunk = plan[index]
      if (chunk === undefined) break
      const request = encodeCbor({ run, ...key, index })
      const bytes = await rpc.call(peer, 'round/chunk', request, { signal: either, lane: 'bulk' })
      if (bytes.length !== chunk.bytes || !(await digestMatches(bytes, header.digests[index]))) {
        throw new ShoalError(
          'blob_corrupt',
          `chunk ${index} of a contribution does not match its hash`,
        )
      }
      // Codes and scales that no encoder makes are refused now, before the round counts on this contribution.
      chunk.codec.decode(bytes, chunk.to - chunk.from)
      chunks[index] = bytes
    }
  }
  const pullers = Array.from({ length: Math.min(LIMITS.chunksInFlight, plan.length) }, puller)
  try {
    await Promise.all(pullers)
  } catch (thrown) {
    failure.abort(thrown)
    await Promise.allSettled(pullers)
    throw thrown
  }
  return chunks
}

export async function askCollected(
  rpc: PeerRpc,
  run: string,
  peer: string,
  key: RoundKey,
  signal: AbortSignal,
): Promise<string[] | undefined> {
  try {
    const request = encodeCbor({ run, ...key, waitMs: POLL_MS })
    const reply = await rpc.call(peer, 'round/set', request, {
      signal,
      deadlineMs: POLL_MS + DEADLINES.rpcMs,
    })
    return parseMessage(setReplySchema, reply, 'set of contributions').peers
  } catch {
    return undefined
  }
}
