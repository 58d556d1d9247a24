/**
 * The state machine of one run on one node: fetching, waiting, training, merging, finished.
 *
 * It advances in its own loop; network events only change what the loop reads. It rejects nothing outward: a fault ends
 * in the status `failed` with a code and a message, everything else is progress.
 */
import { ShoalError, asFault } from '../errors.ts'
import type { BlobReferences } from '../store/blob-references.ts'
import type { RecordStore } from '../store/record-store.ts'
import type { BoardValue, Member, StateService } from '../state/shared-state.ts'
import type { Schema } from '../tensor/schema.ts'
import { catchUp, donors, majorityAgainst } from './catch-up.ts'
import { commitState, snapshotOf } from './commit.ts'
import type { ExchangeService } from './exchange.ts'
import type { Manifest } from './manifest.ts'
import { createMembership } from './membership.ts'
import { discoverMembers, watchMembers } from './members-discovery.ts'
import { mergeReplicas } from './merge.ts'
import { modelSchema } from './model-schema.ts'
import { trainOuterStep } from './outer-step.ts'
import {
  createOutsideTrainer,
  type OuterParameters,
  type TrainingScript,
} from './outside-trainer.ts'
import { prepareRun, startingStep } from './preparation.ts'
import {
  committedRound,
  initialProgress,
  publishRecord,
  setStatus,
  type ReadyRun,
  type RunContext,
  type RunPorts,
} from './run-context.ts'
import { parseRunId } from './run-id.ts'
import { createRunStore, type KeptCheckpoint, type Membership } from './run-store.ts'
import { viewOf } from './run-view.ts'
import { loadVector } from './vector-blobs.ts'
import type { RunView } from './view.ts'

/** How often the waits for peers and for the board look again, should no event wake them. */
const LOOK_AGAIN_MS = 500
/** A last word to the swarm must not hold up the end of the process. */
const FAREWELL_MS = 2_000

export interface Run {
  readonly id: string
  readonly manifest: Manifest
  readonly schema: Schema
  /** For the outside process that trains this run; undefined where the embedded engine does. */
  readonly script: TrainingScript | undefined
  view(): RunView
  members(): Member[]
  /** The newest outer parameters. Throws `conflict` while there are none. */
  parameters(signal: AbortSignal): Promise<OuterParameters>
  /** For peers that join late or fell behind. */
  snapshot(): Promise<KeptCheckpoint | undefined>
  writeBoard(key: string, value: BoardValue | undefined): Promise<void>
  /** Stops and forgets the run. */
  leave(): Promise<void>
  /** Stops; the run goes on from its last commit when it is opened again. */
  stop(): Promise<void>
}

export interface RunDependencies extends RunPorts {
  records: RecordStore
  references: BlobReferences
  exchanges: ExchangeService
  states: StateService
  /** How long an outside trainer may be quiet; default `DEADLINES.trainerSilentMs`. */
  trainerSilentMs?: number | undefined
}

export interface RunOptions {
  /** Peers known to take part; asked first. */
  sources: readonly string[]
  /** What this peer brings; undefined when the run is resumed. */
  membership?: Membership
}

export async function openRun(
  id: string,
  manifest: Manifest,
  deps: RunDependencies,
  options: RunOptions,
): Promise<Run> {
  const run = await createContext(id, manifest, deps, options.membership)
  const ending = new AbortController()
  const { signal } = ending
  const unwatch = watchMembers(run)
  const sources = (): string[] => [
    ...new Set([...options.sources, ...run.membership.others().map(({ peer }) => peer)]),
  ]
  const discovery = discoverMembers(run, parseRunId(id), signal)
  const life = live(run, sources, signal)

  const stop = async (): Promise<void> => {
    if (signal.aborted) return
    ending.abort(new ShoalError('aborted', 'the run was stopped on this node'))
    unwatch()
    await Promise.allSettled([life, discovery])
    await run.commit.catch(() => {})
    await run.trainer?.close()
    run.outside?.end(new ShoalError('aborted', 'the run was stopped on this node'))
    run.exchange.close()
    await run.state.close()
    run.store.close()
  }
  return {
    id,
    manifest,
    schema: run.schema,
    script: run.outside?.script,
    view: () => viewOf(run),
    members: () => run.state.members(),
    parameters: (waiting) => run.outside?.script.parameters(waiting) ?? committedParameters(run),
    snapshot: () => snapshotOf(run, signal),
    writeBoard: (key, value) => run.state.writeBoard(key, value),
    stop,
    async leave() {
      const farewell = deps.clock.deadline(FAREWELL_MS, 'saying goodbye')
      await Promise.race([publishRecord(run, true), deps.clock.sleep(FAREWELL_MS, farewell)]).catch(
        () => {},
      )
      const { store } = run
      await stop()
      await store.forget()
    },
  }
}

async function createContext(
  id: string,
  manifest: Manifest,
  deps: RunDependencies,
  given: Membership | undefined,
): Promise<RunContext> {
  const { records, references, exchanges, states, trainerSilentMs, ...ports } = deps
  const { clock, blobs } = ports
  const schema = modelSchema(manifest.model)
  const store = createRunStore(id, manifest, { records, blobs, references, clock })
  await store.retainStored()
  if (given !== undefined) await store.setMembership(given)
  const isOutside = (given ?? (await store.membership()))?.trainer === 'outside'
  const progress = initialProgress()
  const state = await states.open(id, { admins: manifest.admins })
  const self = ports.network.peerId
  return {
    ...ports,
    id,
    self,
    manifest,
    schema,
    elements: schema.size,
    store,
    state,
    exchange: exchanges.open(id, () => progress.outerStep),
    membership: createMembership(self, state),
    progress,
    commit: Promise.resolve(),
    trainer: undefined,
    outside: isOutside
      ? createOutsideTrainer({ schema, clock, silentMs: trainerSilentMs })
      : undefined,
    committed: undefined,
  }
}

async function live(
  context: RunContext,
  sources: () => string[],
  signal: AbortSignal,
): Promise<void> {
  try {
    const run = await prepareRun(context, sources, signal)
    if (run.committed === undefined) await commitState(run, signal)
    await waitForPeers(run, signal)
    await train(run, signal)
    if (run.committed?.finished !== true) await finish(run, signal)
    setStatus(run, 'finished')
    await publishRecord(run)
    run.outside?.end()
  } catch (thrown) {
    if (signal.aborted) return
    const fault = asFault(thrown)
    context.outside?.end(fault)
    context.progress.error = { code: fault.code, message: fault.message }
    setStatus(context, 'failed')
    context.logger.error('run_failed', {
      run: context.id,
      code: fault.code,
      message: fault.message,
      stack: fault.stack,
    })
    context.emit({ type: 'run_failed', run: context.id, code: fault.code, message: fault.message })
    await publishRecord(context).catch(() => {})
  }
}

async function train(run: ReadyRun, signal: AbortSignal): Promise<void> {
  while (run.progress.outerStep < run.manifest.outerSteps) {
    signal.throwIfAborted()
    await waitWhilePaused(run, signal)
    if (run.progress.status !== 'training') {
      setStatus(run, 'training')
      await publishRecord(run)
    }
    const outcome = await trainOuterStep(run, signal)
    if (outcome === 'stale') await resynchronize(run, donors(run), signal)
    else await resynchronize(run, majorityAgainst(run), signal)
    await settleWithScript(run)
  }
}

/** Tells an outside trainer how its step ended, once nothing can undo it. */
async function settleWithScript({ outside, progress, commit }: ReadyRun): Promise<void> {
  const round = committedRound(progress)
  if (outside === undefined || round === null) return
  await commit
  outside.settle(progress.outerStep, round)
}

/** Of a run that the embedded engine trains: what was committed last. */
async function committedParameters(run: RunContext): Promise<OuterParameters> {
  const { committed, blobs, elements } = run
  if (committed === undefined) {
    throw new ShoalError('conflict', 'the run has no parameters here yet: wait until it trains')
  }
  const release = run.store.retain(committed.parameters.chunks)
  try {
    const parameters = await loadVector(committed.parameters, elements, blobs)
    return { outerStep: committed.outerStep, parameters }
  } finally {
    await release()
  }
}

/** The merge, or, for a peer that comes when it is over, the checkpoint the others made. */
async function finish(run: ReadyRun, signal: AbortSignal): Promise<void> {
  const finished = donors(run).filter(({ record }) => record.status === 'finished')
  if (finished.length > 0) {
    await resynchronize(run, finished, signal)
    await commitState(run, signal, { final: true })
  } else {
    await mergeReplicas(run, signal)
  }
}

async function resynchronize(
  run: ReadyRun,
  from: ReturnType<typeof donors>,
  signal: AbortSignal,
): Promise<void> {
  if (from.length === 0) return
  const caughtUp = await catchUp(run, from, signal).catch((thrown: unknown) => {
    signal.throwIfAborted()
    // Alone with what it has is better than stopped: the next round tells again that it is behind.
    run.logger.warn('catch_up_failed', { run: run.id, reason: String(thrown) })
  })
  if (caughtUp === undefined) return
  await run.commit
  run.outer.parameters.set(caughtUp.parameters)
  if (caughtUp.momentum === null) run.outer.momentum.fill(0)
  else run.outer.momentum.set(caughtUp.momentum)
  // It belongs to parameters that are no more.
  run.outer.residual?.fill(0)
  await run.trainer.writeParameters(run.outer.parameters)
  run.progress.outerStep = startingStep(run, caughtUp.checkpoint.outerStep)
  await commitState(run, signal)
  await publishRecord(run)
}

/** Until enough peers are there, others have begun, or the manifest's patience ends. */
async function waitForPeers(run: ReadyRun, signal: AbortSignal): Promise<void> {
  const { minPeers, startTimeoutMs } = run.manifest.limits
  const startedMs = run.clock.now()
  if (run.progress.outerStep === 0) setStatus(run, 'waiting')
  await publishRecord(run)
  while (run.progress.outerStep === 0 && run.clock.now() - startedMs < startTimeoutMs) {
    const others = run.membership.others()
    const ready = others.filter(
      ({ record }) => record.status === 'waiting' || record.status === 'training',
    )
    if (ready.length + 1 >= minPeers || others.some(({ record }) => record.outerStep > 0)) return
    await nextChange(run, signal)
  }
}

async function waitWhilePaused(run: RunContext, signal: AbortSignal): Promise<void> {
  while (run.state.board()['paused'] === true) {
    if (run.progress.status !== 'paused') {
      setStatus(run, 'paused')
      await publishRecord(run)
    }
    await nextChange(run, signal)
  }
}

/** Resolves at the next change of the shared state, or after a moment. */
async function nextChange(run: RunContext, signal: AbortSignal): Promise<void> {
  const moment = new AbortController()
  const stopListening = run.state.onChange(() => moment.abort())
  try {
    await run.clock.sleep(LOOK_AGAIN_MS, AbortSignal.any([signal, moment.signal]))
  } catch (thrown) {
    if (signal.aborted) throw thrown
  } finally {
    stopListening()
  }
}
