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
  type OfferReply,
  type Refusal,
  type SetReply,
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
  /** How much longer, while it answers that it is still in the round before this one; default 0. */
  latenessMs?: number | undefined
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
  const { plan, signal, transferMs } = options
  const startedMs = clock.now()
  const times: Pick<Pulled, 'waitedMs' | 'transferredMs'> = { waitedMs: null, transferredMs: null }
  try {
    const answer = await askHeader(asking, peer, key, options)
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
      (limited) => pullChunks(asking, peer, key, answer, { ...options, signal: limited }),
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

/**
 * How long at most, and how often at least, a peer that cannot be reached is tried; no longer than one is waited for that
 * says nothing.
 */
const REACH_MAX_MS = 3_000
const REACH_ATTEMPTS = 2
const REACH_AGAIN_MS = 250
const ASK_AGAIN_MS = 20

/**
 * What `ask` brings, which the peer may be asked twice. One that cannot be reached is tried again for a moment: a link
 * may drop and come back, and the address of a peer that has just joined may still be on its way.
 */
async function reaching<T>(
  { clock, patienceMs, signal }: { clock: Clock; patienceMs: number; signal: AbortSignal },
  ask: () => Promise<T>,
): Promise<T> {
  const reachMs = Math.min(REACH_MAX_MS, patienceMs)
  let lostMs: number | undefined
  for (let attempt = 1; ; attempt++) {
    const askedMs = clock.now()
    try {
      return await ask()
    } catch (thrown) {
      if (signal.aborted || asFault(thrown).code !== 'peer_unreachable') throw thrown
      const nowMs = clock.now()
      // Dialling, to the end of its deadline, takes less: it was there until now.
      if (lostMs === undefined || nowMs - askedMs > DEADLINES.dialMs + reachMs) lostMs = nowMs
      if (attempt >= REACH_ATTEMPTS && nowMs - lostMs > reachMs) throw thrown
      await clock.sleep(REACH_AGAIN_MS, signal)
    }
  }
}

/** How long a peer is asked that is not ready. */
interface Patience {
  patienceMs: number
  /** How much longer it is asked when it is late for a reason of its own. */
  latenessMs: number
  cause: string
  signal: AbortSignal
}

interface NotReady {
  refusal: 'not_ready'
  /** Completed there. */
  outerStep: number
}

/**
 * Asks until the peer gives more than the answer that it is not ready. Every such answer of one that is late (`isLate`)
 * renews the patience: it waits for a third peer, perhaps, that this one has given up before it. Throws `timeout`.
 */
async function askUntilReady<T extends object>(
  clock: Clock,
  { patienceMs, latenessMs, cause, signal }: Patience,
  isLate: (outerStep: number) => boolean,
  ask: (waitMs: number, deadlineMs: number, signal: AbortSignal) => Promise<T | NotReady>,
): Promise<T> {
  const startedMs = clock.now()
  let allowedMs = patienceMs
  const leftMs = (): number => Math.max(0, startedMs + allowedMs - clock.now())
  const [expired, done] = [new AbortController(), new AbortController()]
  const expire = async (): Promise<void> => {
    while (leftMs() > 0) await clock.sleep(leftMs(), done.signal)
    const told = `${cause} took longer than ${Math.round(allowedMs)} ms`
    expired.abort(new ShoalError('timeout', told))
  }
  expire().catch(() => {})
  const limited = AbortSignal.any([signal, expired.signal])
  try {
    for (;;) {
      const answer = await reaching({ clock, patienceMs, signal: limited }, () => {
        // Its answer takes time to come back.
        const waitMs = Math.min(POLL_MS, Math.max(leftMs() / 2, leftMs() - ANSWER_MS))
        return ask(Math.floor(waitMs), leftMs(), limited)
      })
      if (!isNotReady(answer)) return answer
      if (isLate(answer.outerStep))
        allowedMs = Math.min(patienceMs + latenessMs, clock.now() - startedMs + patienceMs)
      // It holds its answer back for as long as it was asked to; one that does not is not asked the faster for it.
      await clock.sleep(ASK_AGAIN_MS, limited)
    }
  } finally {
    done.abort()
  }
}

function isNotReady(answer: object): answer is NotReady {
  return 'refusal' in answer && answer.refusal === 'not_ready'
}

/** Asks until the peer has a contribution, refuses for good, or patience ends. */
async function askHeader(
  { rpc, clock, run }: Asking,
  peer: string,
  key: RoundKey,
  options: PullOptions,
): Promise<ContributionHeader | Refused> {
  const { signal, patienceMs, latenessMs = 0, waits } = options
  const ask = async (waitMs: number, leftMs: number, limited: AbortSignal): Promise<OfferReply> => {
    const request = encodeCbor({ run, ...key, waitMs })
    const deadlineMs = Math.min(leftMs, waitMs + DEADLINES.rpcMs)
    const reply = await rpc.call(peer, 'round/offer', request, { signal: limited, deadlineMs })
    return parseMessage(offerReplySchema, reply, 'answer to an offer')
  }
  const patience = { patienceMs, latenessMs, cause: 'waiting for a partner', signal }
  // A merge follows a round in the same outer step, which others may be in.
  const isLate = (outerStep: number): boolean =>
    outerStep === key.outerStep - 1 || (key.phase !== 'outer' && outerStep === key.outerStep)
  const answer = waits
    ? await askUntilReady(clock, patience, isLate, ask)
    : await withDeadline(clock, patienceMs, patience.cause, signal, (limited) =>
        ask(0, patienceMs, limited),
      )
  return 'header' in answer ? answer.header : refusedWith(answer, key)
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
  { plan, patienceMs, transferMs, signal }: PullOptions,
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
      const bytes = await reaching({ clock, patienceMs, signal: either }, () =>
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

/** The peers whose contributions `peer` has collected; undefined when it does not tell in time. */
export async function askCollected(
  { rpc, clock, run }: Asking,
  peer: string,
  key: RoundKey,
  { signal, patienceMs, latenessMs = 0 }: Pick<PullOptions, 'signal' | 'patienceMs' | 'latenessMs'>,
): Promise<string[] | undefined> {
  const ask = async (waitMs: number, leftMs: number, limited: AbortSignal): Promise<SetReply> => {
    const request = encodeCbor({ run, ...key, waitMs })
    const options = { signal: limited, deadlineMs: leftMs }
    const reply = await rpc.call(peer, 'round/set', request, options)
    return parseMessage(setReplySchema, reply, 'set of contributions')
  }
  const cause = 'asking for the set of contributions'
  const patience = { patienceMs, latenessMs, cause, signal }
  try {
    const answer = await askUntilReady(clock, patience, () => true, ask)
    return 'peers' in answer ? answer.peers : undefined
  } catch {
    return undefined
  }
}
