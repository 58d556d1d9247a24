/**
 * The exchange of contributions between peers, for all runs of a node.
 *
 * Contract. Everything is pulled by its receiver: `round/offer` asks a peer for the header of its contribution to a
 * round (the peer holds the answer back until it has one, or the asker's patience ends), `round/chunk` pulls one chunk,
 * `round/set` asks whose contributions a peer has collected. Guarantees: nothing is accepted without its hash; a peer
 * serves a contribution to each partner a few times at most; a peer that is behind is told so; nothing here outlives its
 * signal.
 */
import { withDeadline, type Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Metrics } from '../metrics.ts'
import type { PeerRpc, RpcContext } from '../net/network.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import {
  askCollected,
  pullContribution,
  type Pulled,
  type PullOptions,
} from './contribution-pull.ts'
import { contributionBytes, type Contribution, type RoundKey } from './contribution.ts'
import {
  chunkRequestSchema,
  POLL_MS,
  waitingRequestSchema,
  type Refusal,
} from './exchange-messages.ts'

/** Rounds whose contributions are kept whatever they weigh: partners within the tolerated staleness ask for them. */
const KEPT_ROUNDS_MIN = 3

/** For the round, for a second attempt, and for a partner that took over an older state and replays. */
const SERVINGS = 4

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
  /** Drops what was offered for this outer step and later ones: this peer has gone back, and does them anew. */
  forgetFrom(outerStep: number): void
  pull(peer: string, key: RoundKey, options: PullOptions): Promise<Pulled>
  /** The set another peer collected; undefined when it does not answer in time. */
  collectedBy(
    peer: string,
    key: RoundKey,
    options: Pick<PullOptions, 'signal' | 'patienceMs' | 'latenessMs'>,
  ): Promise<string[] | undefined>
  bytesSent(): number
  bytesReceived(): number
  /** `clock.now()` when a peer was last given a part of a contribution; -Infinity before. */
  lastServedMs(): number
  close(): void
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
  lastServedMs: number
}

export function createExchangeService(deps: {
  rpc: PeerRpc
  clock: Clock
  metrics: Metrics
}): ExchangeService {
  const runs = new Map<string, OpenRun>()
  const removers = [
    deps.rpc.handle('round/offer', (request, context) =>
      serveOffer(runs, deps.clock, request, context),
    ),
    deps.rpc.handle('round/chunk', (request, context) => serveChunk(runs, deps, request, context)),
    deps.rpc.handle('round/set', (request, context) =>
      serveSet(runs, deps.clock, request, context),
    ),
  ]
  return {
    open(run, outerStep) {
      const open: OpenRun = {
        entries: [],
        outerStep,
        waiters: new Set(),
        bytesSent: 0,
        bytesReceived: 0,
        lastServedMs: -Infinity,
      }
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
  { rpc, clock, metrics }: { rpc: PeerRpc; clock: Clock; metrics: Metrics },
  onClose: () => void,
): Exchange {
  const asking = { rpc, clock, run }
  return {
    offer(key, contribution) {
      const entry: Entry = {
        key,
        contribution,
        header: encodeCbor({ header: contribution.header }),
        served: new Map(),
        collected: undefined,
      }
      open.entries = keptEntries([entry, ...open.entries.filter((old) => !sameKey(old.key, key))])
      wake(open)
    },
    setCollected(key, peers) {
      const entry = find(open, key)
      if (entry !== undefined) entry.collected = [...peers].sort()
      wake(open)
    },
    forgetFrom(outerStep) {
      open.entries = open.entries.filter(({ key }) => key.outerStep < outerStep)
    },
    async pull(peer, key, options) {
      const pulled = await pullContribution(asking, peer, key, options)
      if (pulled.kind === 'contribution') {
        const bytes = contributionBytes(pulled.contribution.plan)
        open.bytesReceived += bytes
        metrics.add('round_bytes_received_total', bytes)
      } else if (pulled.refusal === 'invalid' || pulled.refusal === 'schema') {
        metrics.add('contributions_rejected_total', 1, pulled.refusal)
      }
      return pulled
    },
    collectedBy: (peer, key, options) => askCollected(asking, peer, key, options),
    bytesSent: () => open.bytesSent,
    bytesReceived: () => open.bytesReceived,
    lastServedMs: () => open.lastServedMs,
    close() {
      onClose()
      wake(open)
    },
  }
}

async function serveOffer(
  runs: Map<string, OpenRun>,
  clock: Clock,
  request: Uint8Array,
  { signal }: RpcContext,
): Promise<Uint8Array> {
  const { run, waitMs, ...key } = parseMessage(waitingRequestSchema, request, 'question')
  const entry = await until(runs, run, clock, waitMs, signal, (open) => find(open, key), key)
  const open = runs.get(run)
  if (open !== undefined && entry !== undefined) {
    open.lastServedMs = clock.now()
    return entry.header
  }
  return encodeCbor(refusalOf(open, key))
}

function refusalOf(
  open: OpenRun | undefined,
  key: RoundKey,
): { refusal: Refusal; outerStep: number } {
  if (open === undefined) return { refusal: 'unknown_run', outerStep: 0 }
  const outerStep = open.outerStep()
  return { refusal: outerStep > key.outerStep ? 'stale' : 'not_ready', outerStep }
}

async function serveSet(
  runs: Map<string, OpenRun>,
  clock: Clock,
  request: Uint8Array,
  { signal }: RpcContext,
): Promise<Uint8Array> {
  const { run, waitMs, ...key } = parseMessage(waitingRequestSchema, request, 'question')
  const collected = await until(
    runs,
    run,
    clock,
    waitMs,
    signal,
    (open) => find(open, key)?.collected,
    key,
  )
  const open = runs.get(run)
  if (collected === undefined) return encodeCbor(refusalOf(open, key))
  if (open !== undefined) open.lastServedMs = clock.now()
  return encodeCbor({ peers: collected })
}

async function serveChunk(
  runs: Map<string, OpenRun>,
  { clock, metrics }: { clock: Clock; metrics: Metrics },
  request: Uint8Array,
  { peer }: RpcContext,
): Promise<Uint8Array> {
  const { run, index, ...key } = parseMessage(chunkRequestSchema, request, 'question')
  const open = runs.get(run)
  const entry = open === undefined ? undefined : find(open, key)
  const chunk = entry?.contribution.chunks[index]
  if (open === undefined || entry === undefined || chunk === undefined) {
    throw new ShoalError('not_found', 'this contribution is no longer kept')
  }
  const served = entry.served.get(peer) ?? 0
  const isNewcomer = served === 0 && entry.served.size >= 2 * LIMITS.groupPeers
  if (isNewcomer || served >= SERVINGS * entry.contribution.chunks.length) {
    throw new ShoalError('limit_exceeded', 'this contribution was served often enough')
  }
  entry.served.set(peer, served + 1)
  open.bytesSent += chunk.length
  open.lastServedMs = clock.now()
  metrics.add('round_bytes_sent_total', chunk.length)
  return chunk
}

/** Of the entries, newest first, those that are kept. */
function keptEntries(entries: readonly Entry[]): Entry[] {
  const rounds = new Set<number>()
  let bytes = 0
  return entries.filter(({ key, contribution }) => {
    rounds.add(key.outerStep)
    bytes += contributionBytes(contribution.plan)
    const fits = rounds.size <= LIMITS.keptRounds && bytes <= LIMITS.keptRoundBytes
    return fits || rounds.size <= KEPT_ROUNDS_MIN
  })
}

/** Waits until `look` finds something, the round is past, the run is closed, or patience ends. */
async function until<T>(
  runs: Map<string, OpenRun>,
  run: string,
  clock: Clock,
  waitMs: number,
  outer: AbortSignal,
  look: (open: OpenRun) => T | undefined,
  key: RoundKey,
): Promise<T | undefined> {
  const patienceMs = Math.min(waitMs, POLL_MS)
  return withDeadline(clock, patienceMs, 'waiting for a contribution', outer, async (signal) => {
    for (;;) {
      const open = runs.get(run)
      const found = open === undefined ? undefined : look(open)
      if (open === undefined || found !== undefined || signal.aborted) return found
      // A round that this node has left behind will not come back.
      if (open.outerStep() > key.outerStep && find(open, key) === undefined) return undefined
      await nextWake(open, signal)
    }
  })
}

/** Resolves when the run's exchange changes or the signal fires. */
function nextWake(open: OpenRun, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      open.waiters.delete(done)
      signal.removeEventListener('abort', done)
      resolve()
    }
    open.waiters.add(done)
    signal.addEventListener('abort', done, { once: true })
  })
}

function wake(open: OpenRun): void {
  for (const waiter of open.waiters) waiter()
}

function sameKey(a: RoundKey, b: RoundKey): boolean {
  return a.outerStep === b.outerStep && a.phase === b.phase
}

function find(open: OpenRun, key: RoundKey): Entry | undefined {
  return open.entries.find((entry) => sameKey(entry.key, key))
}
