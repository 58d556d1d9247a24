/** One run on one node, as the node sees it: what it is, how it stands, and how it ends. `run-life.ts` moves it on. */
import { ShoalError, asFault } from '../errors.ts'
import { hashOf } from '../random.ts'
import type { BlobReferences } from '../store/blob-references.ts'
import type { RecordStore } from '../store/record-store.ts'
import type { BoardValue, Member, StateService } from '../state/shared-state.ts'
import type { Schema } from '../tensor/schema.ts'
import { createCompany } from './company.ts'
import { createDefence } from './defence.ts'
import type { ExchangeService } from './exchange.ts'
import type { Manifest } from './manifest.ts'
import { handOver } from './hand-over.ts'
import { createHashVotes } from './hash-votes.ts'
import { createMembership } from './membership.ts'
import {
  discoverMembers,
  seekMembers,
  watchConnections,
  watchMembers,
} from './members-discovery.ts'
import { modelSchema } from './model-schema.ts'
import {
  createOutsideTrainer,
  type OuterParameters,
  type TrainingScript,
} from './outside-trainer.ts'
import { createPace } from './pace.ts'
import { initialProgress, type RunContext, type RunPorts } from './run-context.ts'
import { parseRunId } from './run-id.ts'
import { damagedState } from './preparation.ts'
import { fail, live } from './run-life.ts'
import { createRunStore, type KeptCheckpoint, type Membership, type RunStore } from './run-store.ts'
import { viewOf } from './run-view.ts'
import { createSnapshotLeases } from './snapshot-leases.ts'
import { loadVector } from './vector-blobs.ts'
import type { RunView } from './view.ts'

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
  /** For peers that join late or fell behind: the one they are fetching already, or one of `outerStepMin` or later. */
  snapshot(cid: string | undefined, outerStepMin: number): Promise<KeptCheckpoint | undefined>
  writeBoard(key: string, value: BoardValue | undefined): Promise<void>
  /** Gives the others what they still need from here, then stops and forgets the run. */
  leave(): Promise<void>
  /** Stops; the run goes on from its last commit when it is opened again. */
  stop(): Promise<void>
}

export interface RunDependencies extends RunPorts {
  records: RecordStore
  references: BlobReferences
  exchanges: ExchangeService
  states: StateService
  /** What nobody else can know: another one each time, but in a swarm that is to replay exactly. */
  freshSeed: () => string
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
  const leaving = new AbortController()
  const given = { leaving: leaving.signal, membership: options.membership }
  const { run, damage } = await createContext(id, manifest, deps, given)
  const ending = new AbortController()
  const { signal } = ending
  const unwatch = watchMembers(run)
  const unwatchConnections = watchConnections(run, signal)
  const sources = (): string[] => [
    ...new Set([...options.sources, ...run.membership.others().map(({ peer }) => peer)]),
  ]
  const discovery = discoverMembers(run, parseRunId(id), signal)
  const life = damage === undefined ? live(run, sources, signal) : fail(run, damage)

  const end = async (): Promise<void> => {
    ending.abort(new ShoalError('aborted', 'the run was stopped on this node'))
    unwatch()
    await Promise.allSettled([life, discovery, unwatchConnections()])
    await run.commit.catch(() => {})
    await run.trainer?.close()
    run.outside?.end(new ShoalError('aborted', 'the run was stopped on this node'))
    run.exchange.close()
    run.hashVotes.close()
    await run.state.close()
  }
  // Whoever stops a run that is being stopped waits for the same end.
  let ended: Promise<void> | undefined
  const stop = (): Promise<void> => (ended ??= end())
  return {
    id,
    manifest,
    schema: run.schema,
    script: run.outside?.script,
    view: () => viewOf(run),
    members: () => run.state.members(),
    parameters: (waiting) => run.outside?.script.parameters(waiting) ?? committedParameters(run),
    snapshot: (cid, outerStepMin) => run.snapshots.lease(cid, outerStepMin),
    writeBoard: (key, value) => run.state.writeBoard(key, value),
    stop,
    async leave() {
      leaving.abort(new ShoalError('aborted', 'the run is being left'))
      await handOver(run, life)
      const { store } = run
      await stop()
      await store.forget()
    },
  }
}

/** `damage`: what is stored of the run cannot be read; it is shown as failed instead of forgotten. */
async function createContext(
  id: string,
  manifest: Manifest,
  deps: RunDependencies,
  given: { leaving: AbortSignal; membership: Membership | undefined },
): Promise<{ run: RunContext; damage: ShoalError | undefined }> {
  const { records, references, exchanges, states, freshSeed, trainerSilentMs, ...ports } = deps
  const { clock, blobs, network } = ports
  const schema = modelSchema(manifest.model)
  const store = createRunStore(id, manifest, { records, blobs, references, clock })
  const { membership, damage, isLost } = await openStore(store, given.membership)
  const isOutside = membership?.trainer === 'outside'
  const progress = initialProgress()
  if (isLost) {
    const { code, message } = damagedState()
    progress.error = { code, message }
  }
  const state = await states.open(id, { admins: manifest.admins })
  const self = network.peerId
  const { limits, averaging } = manifest
  const isRobust = averaging.defence === 'robust'
  const run: Omit<RunContext, 'snapshots'> = {
    ...ports,
    id,
    self,
    manifest,
    schema,
    elements: schema.size,
    store,
    state,
    exchange: exchanges.open(id, () => progress.outerStep),
    membership: createMembership(self, state, {
      staleness: limits.staleness,
      isRobust,
      isExact: averaging.rule === 'diloco',
      connected: () => network.connectedPeers(),
    }),
    pace: createPace(limits),
    company: createCompany({
      self,
      state,
      clock,
      roundTimeoutMs: limits.roundTimeoutMs,
      seek: (others, signal) => seekMembers({ ...ports, id, self, state }, others, signal),
    }),
    hashVotes: createHashVotes(self, state),
    defence: isRobust
      ? createDefence({ self, clock, secret: hashOf('defence', freshSeed(), id, self) })
      : undefined,
    progress,
    leaving: given.leaving,
    hasSaidGoodbye: false,
    commit: Promise.resolve(),
    local: undefined,
    trainer: undefined,
    outside: isOutside
      ? createOutsideTrainer({ schema, clock, silentMs: trainerSilentMs })
      : undefined,
    committed: undefined,
  }
  return { run: withSnapshots(run), damage }
}

/** In place: what hands out the committed state must see the state that is committed. */
function withSnapshots(run: Omit<RunContext, 'snapshots'>): RunContext {
  const snapshots = createSnapshotLeases(run)
  return Object.assign(run, { snapshots })
}

/**
 * `damage`: what this peer brought to the run cannot be read. `isLost`: the state cannot, which others may give.
 */
async function openStore(
  store: RunStore,
  given: Membership | undefined,
): Promise<{
  membership: Membership | undefined
  damage: ShoalError | undefined
  isLost: boolean
}> {
  if (given !== undefined) await store.setMembership(given)
  const membership = await unlessCorrupt(store.membership())
  const stored = await unlessCorrupt(store.retainStored())
  return {
    membership: membership.value,
    damage: membership.damage,
    isLost: stored.damage !== undefined,
  }
}

async function unlessCorrupt<T>(
  reading: Promise<T>,
): Promise<{ value: T | undefined; damage: ShoalError | undefined }> {
  try {
    return { value: await reading, damage: undefined }
  } catch (thrown) {
    const damage = asFault(thrown)
    if (damage.code !== 'state_corrupt') throw damage
    return { value: undefined, damage }
  }
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
