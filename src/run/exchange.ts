/**
 * The exchange of contributions between peers, for all runs of a node.
 *
 * Contract. Everything is pulled by its receiver: `round/offer` asks a peer for the header of its contribution to a
 * round (the peer holds the answer back until it has one, or the asker's patience ends), `round/chunk` pulls one chunk,
 * `round/set` asks whose contributions a peer has collected. Guarantees: nothing is accepted without its hash; a peer
 * serves a contribution to each partner at most twice; a peer that is behind is told so; nothing here outlives its
 * signal.
 */
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Metrics } from '../metrics.ts'
import type { PeerRpc, RpcContext } from '../net/network.ts'
import { decodeCbor, encodeCbor } from '../store/content.ts'
import {
  contributionBytes,
  contributionHeaderSchema,
  digestMatches,
  PHASES,
  type ChunkPlan,
  type Contribution,
  type ContributionHeader,
  type RoundKey,
} from './contribution.ts'

export const REFUSALS = ['not_ready', 'stale', 'unknown_run', 'quota', 'schema', 'invalid', 'unreachable'] as const
export type Refusal = (typeof REFUSALS)[number]

export type Pulled =
  | { kind: 'contribution'; contribution: Contribution; bytes: number }
  | { kind: 'refused'; refusal: Refusal; message: string; outerStep: number | null }

const keyShape = {
  run: z.string().max(128),
  outerStep: z.number().int().min(0),
  phase: z.enum(PHASES),
}
const waitShape = { ...keyShape, waitMs: z.number().int().min(0).max(600_000) }
const offerRequestSchema = z.strictObject(waitShape)
const chunkRequestSchema = z.strictObject({ ...keyShape, index: z.number().int().min(0).max(4096) })
const offerReplySchema = z.union([
  z.strictObject({ header: contributionHeaderSchema }),
  z.strictObject({ refusal: z.enum(REFUSALS), outerStep: z.number().int().min(0) }),
])
const setReplySchema = z.strictObject({ peers: z.array(z.string().max(128)).max(LIMITS.groupPeers) })

/** One poll waits no longer than this at the other side: what has not come by then is asked for again. */
const POLL_MS = 15_000
/** Contributions kept after their round, so that a slower partner still gets them. */
const KEPT_ROUNDS = 3

interface Entry {
  key: RoundKey
  contribution: Contribution
  header: Uint8Array
  /** Chunks served, by peer. */
  served: Map<string, number>
  collected: string[] | undefined
}

export interface Exchange {
  /** Makes the own contribution available to partners. */
  offer(key: RoundKey, contribution: Contribution): void
  /** States whose contributions were collected (own included), for `collectedBy`. */
  setCollected(key: RoundKey, peers: readonly string[]): void
  pull(peer: string, key: RoundKey, options: PullOptions): Promise<Pulled>
  /** The set another peer collected; undefined when it does not answer in time. */
  collectedBy(peer: string, key: RoundKey, signal: AbortSignal): Promise<string[] | undefined>
  bytesSent(): number
  bytesReceived(): number
  close(): void
}

export interface PullOptions {
  plan: readonly ChunkPlan[]
  schemaHash: string
  signal: AbortSignal
  /** Whether to wait for a partner that has not finished its inner steps. */
  patient: boolean
}

export interface ExchangeService {
  /** `outerStep` tells the run's completed outer steps, so that peers behind can be told. */
  open(run: string, outerStep: () => number): Exchange
  close(): void
}

interface OpenRun {
  entries: Entry[]
  outerStep: () => number
  waiters: Set<() => void>
  bytesSent: number
  bytesReceived: number
}

export function createExchangeService(deps: { rpc: PeerRpc; clock: Clock; metrics: Metrics }): ExchangeService {
  const runs = new Map<string, OpenRun>()
  const removers = [
    deps.rpc.handle('round/offer', (request, context) => serveOffer(runs, deps.clock, request, context)),
    deps.rpc.handle('round/chunk', (request, context) => serveChunk(runs, deps.metrics, request, context)),
    deps.rpc.handle('round/set', (request, context) => serveSet(runs, deps.clock, request, context)),
  ]
  return {
    open(run, outerStep) {
      const open: OpenRun = { entries: [], outerStep, waiters: new Set(), bytesSent: 0, bytesReceived: 0 }
      runs.set(run, open)
      return createExchange(run, open, deps, () => runs.delete(run))
    },
    close() {
      for (const remove of removers) remove()
      runs.clear()
    },
  }
}

function createExchange(
  run: string,
  open: OpenRun,
  { rpc, metrics }: { rpc: PeerRpc; metrics: Metrics },
  onClose: () => void,
): Exchange {
  return {
    offer(key, contribution) {
      open.entries = open.entries
        .filter((entry) => entry.key.outerStep > key.outerStep - KEPT_ROUNDS && !sameKey(entry.key, key))
        .concat({
          key,
          contribution,
          header: encodeCbor({ header: contribution.header }),
          served: new Map(),
          collected: undefined,
        })
      wake(open)
    },
    setCollected(key, peers) {
      const entry = find(open, key)
      if (entry !== undefined) entry.collected = [...peers].sort()
      wake(open)
    },
    async pull(peer, key, options) {
      const pulled = await pullContribution(rpc, run, peer, key, options)
      if (pulled.kind === 'contribution') {
        open.bytesReceived += pulled.bytes
        metrics.add('round_bytes_received_total', pulled.bytes)
      } else if (pulled.refusal === 'invalid' || pulled.refusal === 'schema') {
        metrics.add('contributions_rejected_total', 1, pulled.refusal)
      }
      return pulled
    },
    collectedBy: (peer, key, signal) => askCollected(rpc, run, peer, key, signal),
    bytesSent: () => open.bytesSent,
    bytesReceived: () => open.bytesReceived,
    close() {
      onClose()
      wake(open)
    },
  }
}

// Serving ----------------------------------------------------------------------------------------------------------

async function serveOffer(
  runs: Map<string, OpenRun>,
  clock: Clock,
  request: Uint8Array,
  { signal }: RpcContext,
): Promise<Uint8Array> {
  const { run, waitMs, ...key } = parse(offerRequestSchema, request)
  const entry = await until(runs, run, clock, waitMs, signal, (open) => find(open, key), key)
  if (entry !== undefined) return entry.header
  const open = runs.get(run)
  const outerStep = open?.outerStep() ?? 0
  const refusal: Refusal = open === undefined ? 'unknown_run' : outerStep > key.outerStep ? 'stale' : 'not_ready'
  return encodeCbor({ refusal, outerStep })
}

async function serveSet(
  runs: Map<string, OpenRun>,
  clock: Clock,
  request: Uint8Array,
  { signal }: RpcContext,
): Promise<Uint8Array> {
  const { run, waitMs, ...key } = parse(offerRequestSchema, request)
  const collected = await until(runs, run, clock, waitMs, signal, (open) => find(open, key)?.collected, key)
  if (collected === undefined) throw new ShoalError('refused', 'no set of contributions for this round')
  return encodeCbor({ peers: collected })
}

async function serveChunk(
  runs: Map<string, OpenRun>,
  metrics: Metrics,
  request: Uint8Array,
  { peer }: RpcContext,
): Promise<Uint8Array> {
  const { run, index, ...key } = parse(chunkRequestSchema, request)
  const open = runs.get(run)
  const entry = open === undefined ? undefined : find(open, key)
  const chunk = entry?.contribution.chunks[index]
  if (open === undefined || entry === undefined || chunk === undefined) {
    throw new ShoalError('not_found', 'this contribution is no longer kept')
  }
  const served = entry.served.get(peer) ?? 0
  const isNewcomer = served === 0 && entry.served.size >= 2 * LIMITS.groupPeers
  if (isNewcomer || served >= 2 * entry.contribution.chunks.length) {
    throw new ShoalError('limit_exceeded', 'this contribution was served often enough')
  }
  entry.served.set(peer, served + 1)
  open.bytesSent += chunk.length
  metrics.add('round_bytes_sent_total', chunk.length)
  return chunk
}

/** Waits until `look` finds something, the round is past, the run is closed, or patience ends. */
async function until<T>(
  runs: Map<string, OpenRun>,
  run: string,
  clock: Clock,
  waitMs: number,
  signal: AbortSignal,
  look: (open: OpenRun) => T | undefined,
  key: RoundKey,
): Promise<T | undefined> {
  const patience = clock.deadline(Math.min(waitMs, POLL_MS), 'waiting for a contribution', signal)
  for (;;) {
    const open = runs.get(run)
    const found = open === undefined ? undefined : look(open)
    if (open === undefined || found !== undefined || patience.aborted) return found
    // A round that this node has left behind will not come back.
    if (open.outerStep() > key.outerStep && find(open, key) === undefined) return undefined
    await new Promise<void>((resolve) => {
      const done = (): void => {
        open.waiters.delete(done)
        patience.removeEventListener('abort', done)
        resolve()
      }
      open.waiters.add(done)
      patience.addEventListener('abort', done, { once: true })
    })
  }
}

function wake(open: OpenRun): void {
  for (const waiter of [...open.waiters]) waiter()
}

function sameKey(a: RoundKey, b: RoundKey): boolean {
  return a.outerStep === b.outerStep && a.phase === b.phase
}

function find(open: OpenRun, key: RoundKey): Entry | undefined {
  return open.entries.find((entry) => sameKey(entry.key, key))
}

// Pulling ----------------------------------------------------------------------------------------------------------

async function pullContribution(
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
    return { kind: 'contribution', contribution: { peer, header: answer, plan: options.plan, chunks }, bytes }
  } catch (thrown) {
    const code = thrown instanceof ShoalError ? thrown.code : 'internal'
    const refusal: Refusal =
      code === 'message_invalid' || code === 'blob_corrupt' ? 'invalid' : code === 'limit_exceeded' ? 'quota' : 'unreachable'
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
    const reply = await rpc.call(peer, 'round/offer', request, { signal, deadlineMs: waitMs + DEADLINES.rpcMs })
    const answer = parse(offerReplySchema, reply)
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
  if (header.digests.length !== plan.length) return { refusal: 'invalid', message: 'wrong number of chunks' }
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
        throw new ShoalError('blob_corrupt', `chunk ${index} of a contribution does not match its hash`)
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

async function askCollected(
  rpc: PeerRpc,
  run: string,
  peer: string,
  key: RoundKey,
  signal: AbortSignal,
): Promise<string[] | undefined> {
  try {
    const request = encodeCbor({ run, ...key, waitMs: POLL_MS })
    const reply = await rpc.call(peer, 'round/set', request, { signal, deadlineMs: POLL_MS + DEADLINES.rpcMs })
    return parse(setReplySchema, reply).peers
  } catch {
    return undefined
  }
}

function parse<T>(schema: z.ZodType<T>, bytes: Uint8Array): T {
  const parsed = schema.safeParse(decodeCbor(bytes, LIMITS.rpcMessageBytes))
  if (parsed.success) return parsed.data
  throw new ShoalError('message_invalid', `malformed message at ${parsed.error.issues[0]?.path.join('.') ?? ''}`)
}
