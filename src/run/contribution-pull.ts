/** Pulling a contribution, and asking what a peer collected: the asking side of `exchange.ts`. */
import { withDeadline, type Clock } from '../clock.ts'
import { asFault, ShoalError, type FaultCode } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { PeerRpc } from '../net/network.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import {
  digestMatches,
  type ChunkPlan,
  type Contribution,
  type ContributionHeader,
  type RoundKey,
} from './contribution.ts'
import {
  ANSWER_MS,
  offerReplySchema,
  POLL_MS,
  setReplySchema,
  type Refusal,
} from './exchange-messages.ts'

interface Refused {
  kind: 'refused'
  refusal: Refusal
  message: string
  outerStep: number | null
}

export type Pulled = ({ kind: 'contribution'; contribution: Contribution } | Refused) & {
  /** Until the header was here; null when it never was. */
  waitedMs: number | null
  /** From the header to the last chunk, or to the deadline that this missed; null when there is nothing to learn. */
  transferredMs: number | null
}

interface Asking {
  rpc: PeerRpc
  clock: Clock
  run: string
}

export interface PullOptions {
  plan: readonly ChunkPlan[]
  schemaHash: string
  signal: AbortSignal
  /** How long the peer may take to answer with a header. */
  patienceMs: number
  /** Whether to wait so long for a peer that has not finished its inner steps. */
  waits: boolean
  /** How long the chunks may take. */
  transferMs: number
}

/** Never rejects: whatever goes wrong is a refusal. */
export async function pullContribution(
  asking: Asking,
  peer: string,
  key: RoundKey,
  options: PullOptions,
): Promise<Pulled> {
  const { clock, run } = asking
  const { plan, signal, patienceMs, transferMs } = options
  const startedMs = clock.now()
  const times: Pick<Pulled, 'waitedMs' | 'transferredMs'> = { waitedMs: null, transferredMs: null }
  try {
    const answer = await withDeadline(
      clock,
      patienceMs,
      'waiting for a partner',
      signal,
      (limited) => askHeader(asking, peer, key, { ...options, signal: limited }),
    )
    if ('kind' in answer) return { ...answer, ...times }
    const problem = headerProblem(answer, run, key, options)
    if (problem !== undefined) return { kind: 'refused', ...problem, outerStep: null, ...times }
    const answeredMs = clock.now()
    times.waitedMs = answeredMs - startedMs
    // Unless it succeeds, what is known is that it takes longer.
    times.transferredMs = transferMs
    const chunks = await withDeadline(
      clock,
      transferMs,
      'receiving a contribution',
      signal,
      (limited) => pullChunks(asking, peer, key, answer, { plan, transferMs, signal: limited }),
    )
    times.transferredMs = clock.now() - answeredMs
    const contribution = { peer, header: answer, plan, chunks }
    return { kind: 'contribution', contribution, ...times }
  } catch (thrown) {
    const { code, message } = asFault(thrown)
    const transferredMs = code === 'timeout' ? times.transferredMs : null
    return {
      kind: 'refused',
      refusal: REFUSAL_OF[code] ?? 'unreachable',
      message,
      outerStep: null,
      ...times,
      transferredMs,
    }
  }
}

const REFUSAL_OF: Partial<Record<FaultCode, Refusal>> = {
  message_invalid: 'invalid',
  blob_corrupt: 'invalid',
  limit_exceeded: 'quota',
  not_found: 'stale',
}

/** How long, and how often at least, a peer that cannot be reached is tried; the wait that it belongs to ends it sooner. */
const REACH_MS = 3_000
const REACH_ATTEMPTS = 2
const REACH_AGAIN_MS = 250
const ASK_AGAIN_MS = 20

/**
 * What `ask` brings, which the peer may be asked twice. One that cannot be reached is tried again for a moment: a link
 * may drop and come back, and the address of a peer that has just joined may still be on its way.
 */
async function reaching<T>(clock: Clock, signal: AbortSignal, ask: () => Promise<T>): Promise<T> {
  let lostMs: number | undefined
  for (let attempt = 1; ; attempt++) {
    const askedMs = clock.now()
    try {
      return await ask()
    } catch (thrown) {
      if (signal.aborted || asFault(thrown).code !== 'peer_unreachable') throw thrown
      const nowMs = clock.now()
      // Dialling, to the end of its deadline, takes less: it was there until now.
      if (lostMs === undefined || nowMs - askedMs > DEADLINES.dialMs + REACH_MS) lostMs = nowMs
      if (attempt >= REACH_ATTEMPTS && nowMs - lostMs > REACH_MS) throw thrown
      await clock.sleep(REACH_AGAIN_MS, signal)
    }
  }
}

/** Asks until the peer has a contribution, refuses for good, or the signal fires. */
async function askHeader(
  { rpc, clock, run }: Asking,
  peer: string,
  key: RoundKey,
  { signal, patienceMs, waits }: PullOptions,
): Promise<ContributionHeader | Refused> {
  const startedMs = clock.now()
  const ask = (): Promise<Uint8Array> => {
    const leftMs = Math.max(0, patienceMs - (clock.now() - startedMs))
    // Its answer takes time to come back.
    const waitMs = waits ? Math.min(POLL_MS, Math.max(leftMs / 2, leftMs - ANSWER_MS)) : 0
    const request = encodeCbor({ run, ...key, waitMs: Math.floor(waitMs) })
    const deadlineMs = Math.min(leftMs, waitMs + DEADLINES.rpcMs)
    return rpc.call(peer, 'round/offer', request, { signal, deadlineMs })
  }
  for (;;) {
    const reply = await (waits ? reaching(clock, signal, ask) : ask())
    const answer = parseMessage(offerReplySchema, reply, 'answer to an offer')
    if ('header' in answer) return answer.header
    if (answer.refusal !== 'not_ready' || !waits || signal.aborted) return refusedWith(answer, key)
    // It holds its answer back for as long as it was asked to; one that does not is not asked the faster for it.
    await clock.sleep(ASK_AGAIN_MS, signal)
  }
}

function refusedWith(
  { refusal, outerStep }: { refusal: Refusal; outerStep: number },
  key: RoundKey,
): Refused {
  const message = `outer step ${outerStep} there, ${key.outerStep} here`
  return { kind: 'refused', refusal, message, outerStep }
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

/**
 * Pulls all chunks, `LIMITS.chunksInFlight` at a time; the first failure stops the rest. A link that drops costs the
 * chunks that are on their way: what is here stays.
 */
async function pullChunks(
  { rpc, clock, run }: Asking,
  peer: string,
  key: RoundKey,
  header: ContributionHeader,
  { plan, transferMs, signal }: Pick<PullOptions, 'plan' | 'transferMs' | 'signal'>,
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
      // On a slow line the chunks that are pulled at once share it.
      const options = { signal: either, lane: 'bulk', deadlineMs: transferMs } as const
      const bytes = await reaching(clock, either, () =>
        rpc.call(peer, 'round/chunk', request, options),
      )
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

/** The peers whose contributions `peer` has collected; undefined when it does not tell within `patienceMs`. */
export async function askCollected(
  { rpc, clock, run }: Asking,
  peer: string,
  key: RoundKey,
  { signal, patienceMs }: Pick<PullOptions, 'signal' | 'patienceMs'>,
): Promise<string[] | undefined> {
  const startedMs = clock.now()
  const ask = (): Promise<Uint8Array> => {
    const leftMs = Math.max(0, patienceMs - (clock.now() - startedMs))
    const waitMs = Math.floor(Math.min(POLL_MS, Math.max(leftMs / 2, leftMs - ANSWER_MS)))
    const request = encodeCbor({ run, ...key, waitMs })
    return rpc.call(peer, 'round/set', request, { signal, deadlineMs: leftMs })
  }
  try {
    const reply = await withDeadline(
      clock,
      patienceMs,
      'asking for the set of contributions',
      signal,
      (limited) => reaching(clock, limited, ask),
    )
    return parseMessage(setReplySchema, reply, 'set of contributions').peers
  } catch {
    return undefined
  }
}
