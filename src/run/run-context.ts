/** What the parts of one run share: its definition, its ports, and the progress that they move forward. */
import type { Clock } from '../clock.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { BlobExchange } from '../net/blobs.ts'
import type { Network } from '../net/network.ts'
import type { PeerRecord } from '../state/record.ts'
import type { SharedState } from '../state/shared-state.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { OuterState } from '../optim/outer.ts'
import type { Schema } from '../tensor/schema.ts'
import type { Company } from './company.ts'
import type { Defence } from './defence.ts'
import type { Exchange } from './exchange.ts'
import type { HashVotes } from './hash-votes.ts'
import type { Manifest } from './manifest.ts'
import type { Membership } from './membership.ts'
import type { LocalState } from './overlap.ts'
import type { Pace } from './pace.ts'
import type { KeptCheckpoint, RunStore, StoredState } from './run-store.ts'
import type { CommittedRound, OutsideTrainer } from './outside-trainer.ts'
import type { SnapshotLeases } from './snapshot-leases.ts'
import type { Engine, RunTrainer } from './trainer.ts'
import type { RoundView, RunEvent, RunView } from './view.ts'

export interface RunPorts {
  network: Network
  engine: Engine
  blobs: BlobStore
  blobExchange: BlobExchange
  clock: Clock
  logger: Logger
  metrics: Metrics
  emit: (event: RunEvent) => void
}

export interface Progress {
  status: RunView['status']
  /** Completed outer steps. */
  outerStep: number
  innerStep: number
  tokens: number
  loss: number | null
  lossStart: number | null
  validationLoss: number | null
  tokensPerSecond: number
  consensusDistance: number | null
  round: RoundView | null
  rounds: { averaged: number; solo: number; stale: number }
  checkpoints: KeptCheckpoint[]
  parametersHash: string | null
  /**
   * All-reduce runs: the parameters are of a time apart and not merged with the swarm's yet. What was done in it, as a
   * share of what the others have done.
   */
  apart: number | null
  /** Wall time of training in this session, and how much of it the trainer stood still for the network. */
  trainingMs: number
  waitedMs: number
  /** Of sessions before this one. */
  bytesSentBefore: number
  bytesReceivedBefore: number
  error: { code: string; message: string } | null
}

export interface RunContext extends RunPorts {
  readonly id: string
  readonly self: string
  readonly manifest: Manifest
  readonly schema: Schema
  /** Elements of the flat vector. */
  readonly elements: number
  readonly store: RunStore
  readonly state: SharedState
  readonly exchange: Exchange
  readonly membership: Membership
  readonly pace: Pace
  readonly company: Company
  readonly hashVotes: HashVotes
  /** Where the manifest asks for it. */
  readonly defence: Defence | undefined
  /** What others are given. */
  readonly snapshots: SnapshotLeases
  readonly progress: Progress
  /** The commit under way; parameters must not change before it is done. */
  commit: Promise<void>
  /** Where the next inner steps start; undefined when that is at the outer parameters. */
  local: LocalState | undefined
  /** Open once the run is ready. */
  trainer: RunTrainer | undefined
  /** Fires when this peer wants to leave: the step in hand ends with what is done, and there is no other. */
  readonly leaving: AbortSignal
  /** Whether the others have been told that this peer leaves: its last word. */
  hasSaidGoodbye: boolean
  /** Where an outside process trains this run; then it is the trainer. */
  readonly outside: OutsideTrainer | undefined
  /** The last committed state: what a late joiner is given. */
  committed: StoredState | undefined
}

/** A run whose weights are here and whose trainer is open. */
export interface ReadyRun extends RunContext {
  trainer: RunTrainer
  /** Changed in place by rounds. */
  readonly outer: OuterState
}

export function initialProgress(): Progress {
  return {
    status: 'fetching',
    outerStep: 0,
    innerStep: 0,
    tokens: 0,
    loss: null,
    lossStart: null,
    validationLoss: null,
    tokensPerSecond: 0,
    consensusDistance: null,
    round: null,
    rounds: { averaged: 0, solo: 0, stale: 0 },
    checkpoints: [],
    parametersHash: null,
    apart: null,
    trainingMs: 0,
    waitedMs: 0,
    bytesSentBefore: 0,
    bytesReceivedBefore: 0,
    error: null,
  }
}

/** What an outside trainer is told of the newest round; null before the first. */
export function committedRound({ round, consensusDistance }: Progress): CommittedRound | null {
  if (round === null) return null
  const { outerStep, outcome, partners } = round
  return { outerStep, outcome, partners, consensusDistance }
}

/** The next inner steps start at the outer parameters. */
export async function startFromOuter(run: ReadyRun): Promise<void> {
  run.local = undefined
  await run.trainer.writeParameters(run.outer.parameters)
}

/** How often the waits for peers and for the board look again, should no event wake them. */
const LOOK_AGAIN_MS = 500

/** Resolves at the next change of the shared state, or after `ms`; rejects when the signal fires. */
export async function nextChange(
  { state, clock }: { state: Pick<SharedState, 'onChange'>; clock: Clock },
  signal: AbortSignal,
  ms = LOOK_AGAIN_MS,
): Promise<void> {
  const moment = new AbortController()
  const stopListening = state.onChange(() => moment.abort())
  try {
    await clock.sleep(ms, AbortSignal.any([signal, moment.signal]))
  } catch (thrown) {
    if (signal.aborted) throw thrown
  } finally {
    stopListening()
  }
}

/** Waits for the network while the trainer stands still, and counts the time. */
export async function standStill<T>(
  { clock, progress, metrics }: Pick<RunContext, 'clock' | 'progress' | 'metrics'>,
  waiting: Promise<T>,
): Promise<T> {
  const startedMs = clock.now()
  try {
    return await waiting
  } finally {
    const elapsedMs = clock.now() - startedMs
    progress.waitedMs += elapsedMs
    metrics.add('training_waited_seconds_total', elapsedMs / 1000)
  }
}

export function bytesSent({ progress, exchange }: RunContext): number {
  return progress.bytesSentBefore + exchange.bytesSent()
}

export function bytesReceived({ progress, exchange }: RunContext): number {
  return progress.bytesReceivedBefore + exchange.bytesReceived()
}

const RECORD_STATUS: Record<Progress['status'], PeerRecord['status']> = {
  fetching: 'joining',
  waiting: 'waiting',
  training: 'training',
  silent: 'silent',
  paused: 'waiting',
  merging: 'merging',
  finished: 'finished',
  failed: 'leaving',
}

export function setStatus(run: RunContext, status: Progress['status']): void {
  if (run.progress.status === status) return
  run.progress.status = status
  run.emit({ type: 'run_status', run: run.id, status, outerStep: run.progress.outerStep })
}

/** Writes the own record from the progress and spreads it; after the farewell nothing more. */
export async function publishRecord(run: RunContext): Promise<void> {
  if (!run.hasSaidGoodbye) await publish(run, RECORD_STATUS[run.progress.status])
}

/** The last record. A step that ends later, such as one that a script still hands in, does not take it back. */
export async function sayGoodbye(run: RunContext): Promise<void> {
  run.hasSaidGoodbye = true
  await publish(run, 'leaving')
}

async function publish(run: RunContext, status: PeerRecord['status']): Promise<void> {
  const { progress } = run
  const newest = progress.checkpoints.at(-1)
  await run.state.publish({
    status,
    outerStep: progress.outerStep,
    tokens: progress.tokens,
    loss: progress.loss,
    validationLoss: progress.validationLoss,
    tokensPerSecond: Math.round(progress.tokensPerSecond),
    checkpoint: newest?.cid ?? null,
    checkpointStep: newest?.outerStep ?? null,
    // Only all-reduce peers hold equal parameters, and only they wait for the hash of the step they publish.
    parametersHash: run.manifest.averaging.rule === 'diloco' ? progress.parametersHash : null,
    consensusDistance: progress.consensusDistance,
    partners: progress.round?.partners ?? [],
    outcome: progress.round?.outcome ?? null,
    bytesSent: bytesSent(run),
    bytesReceived: bytesReceived(run),
  })
}
