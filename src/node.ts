/** createNode(): the composition root of the library, readable top to bottom. */
import { systemClock, type Clock } from './clock.ts'
import { asFault, ShoalError } from './errors.ts'
import { DEADLINES } from './limits.ts'
import { silentLogger, type Logger } from './log.ts'
import { createMetrics, type Metrics } from './metrics.ts'
import { createBlobExchange, type BlobExchange } from './net/blobs.ts'
import type { Diagnosis } from './net/diagnosis.ts'
import type { NatType } from './net/nat.ts'
import type { Link, Network, NetworkReachability } from './net/network.ts'
import type { RelayLimits, RelayUse } from './net/relay-server.ts'
import { createServices, type Services } from './net/services.ts'
import { createSharedBlobs, type SharedBlobs } from './net/shared-blobs.ts'
import { seededRandom, type Random } from './random.ts'
import { createAveragingGroups, type AveragingGroups } from './run/averaging-groups.ts'
import { loadCheckpoint } from './run/checkpoint.ts'
import { discoverRuns, serveDirectory } from './run/directory.ts'
import { createEventLog, type EventLog, type LoggedEvent } from './run/event-log.ts'
import { createExchangeService } from './run/exchange.ts'
import { exportModel, type ExportedFile } from './run/exported-model.ts'
import type { Manifest, RunSpec } from './run/manifest.ts'
import type { OuterParameters, TrainingScript } from './run/outside-trainer.ts'
import {
  createRunCollection,
  type JoinOptions,
  type RunCollection,
  type TrainerOptions,
} from './run/run-collection.ts'
import { formatRunLink } from './run/run-id.ts'
import type { Run } from './run/run.ts'
import { serveSnapshots } from './run/snapshots.ts'
import {
  startFromCheckpoint,
  type CheckpointDependencies,
  startFromFiles,
  type ModelFiles,
  type StartingPoint,
} from './run/starting-point.ts'
import type { Engine } from './run/trainer.ts'
import { loadVector } from './run/vector-blobs.ts'
import type { CheckpointView, RunEvent, RunListing, RunView } from './run/view.ts'
import { createStateService } from './state/service.ts'
import type { Member } from './state/shared-state.ts'
import { createBlobReferences, type BlobReferences } from './store/blob-references.ts'
import type { BlobStore } from './store/blob-store.ts'
import { parseCid } from './store/content.ts'
import type { RecordStore } from './store/record-store.ts'
import type { Schema } from './tensor/schema.ts'

/** What a node tells of itself. */
export interface NodeStatus {
  peerId: string
  addresses: string[]
  reachability: NetworkReachability
  nat: NatType
  /** Peer ids of the relays through which this node can be reached. */
  relays: string[]
  /** What this node carries for others as a relay; null when it is none. */
  relaying: { limits: RelayLimits; use: RelayUse } | null
  links: number
  runs: number
  engine: string
  uptimeMs: number
  counters: Record<string, number>
}

/** A checkpoint as a Hugging Face style folder: files with their bytes, made while they are read. */
export type CheckpointFile = ExportedFile

/** A peer of training swarms: what the daemon, the local API and programs of your own do. */
export interface ShoalNode {
  readonly peerId: string
  status(): NodeStatus
  peers(): Link[]
  connect(address: string, signal?: AbortSignal): Promise<string>
  /** How this node is connected, measured anew, with advice. Takes some seconds. */
  diagnose(options: { peer?: string | undefined; signal: AbortSignal }): Promise<Diagnosis>
  /**
   * Builds initial weights, manifest and blobs, and starts to take part. `text` is the data named by the spec, `from`
   * are the files named by it where that is no CID.
   */
  createRun(
    spec: RunSpec,
    text: Uint8Array | undefined,
    options?: TrainerOptions & { from?: ModelFiles | undefined },
  ): Promise<RunView>
  /**
   * Takes part in a run known by its id or `shoal:` link: finds members, fetches manifest, weights and data from them.
   * Resolves when the manifest is here; the rest goes on in the background and is seen in the view's status.
   * `text` is this peer's own data, compulsory when the manifest shares none.
   */
  joinRun(idOrLink: string, options?: JoinOptions): Promise<RunView>
  leaveRun(id: string): Promise<void>
  /** Own runs, or with `discover` also public ones found in the directory. */
  listRuns(options?: {
    discover?: boolean | undefined
    signal?: AbortSignal | undefined
  }): Promise<RunListing[]>
  /** Throws `run_unknown` when this node does not take part in it. */
  run(id: string): RunView
  runs(): RunView[]
  manifest(id: string): Manifest
  /** Records of all members, as they signed them. */
  members(id: string): Member[]
  /** The newest outer parameters, their layout, and the outer step that starts from them. */
  parameters(id: string, signal: AbortSignal): Promise<OuterParameters & { schema: Schema }>
  /** For the outside process that trains a run. Throws `conflict` when the embedded engine trains it. */
  trainingScript(id: string): TrainingScript
  /** `shoal:<run id>?peer=<multiaddr>…` */
  invite(id: string): string
  checkpoints(id: string): CheckpointView[]
  /** The newest checkpoint (or `cid`) as files of a Hugging Face style folder. Throws `not_found`. */
  exportCheckpoint(id: string, cid?: string): Promise<CheckpointFile[]>
  writeBoard(
    id: string,
    key: string,
    value: string | number | boolean | null | undefined,
  ): Promise<void>
  onEvent(listener: (event: RunEvent) => void): () => void
  /** What has happened in a run since this node took part, over restarts: events after number `after`, oldest first. */
  loggedEvents(id: string, after?: number): AsyncIterable<LoggedEvent>
  /** Content shared by its CID beside any run. */
  readonly blobs: SharedBlobs
  /** Calls between the programs that run beside the nodes. */
  readonly services: Services
  /** Averages beside any run. */
  readonly averaging: AveragingGroups
  stop(): Promise<void>
}

/** What a node is made of: network, stores and engine are the caller's. */
export interface NodeOptions {
  /** Opened with the node's identity; `stop` closes it. */
  network: Network
  records: RecordStore
  blobs: BlobStore
  /** Closed by `stop`. */
  engine: Engine
  /** The metrics that the network counts into. */
  metrics?: Metrics
  clock?: Clock
  logger?: Logger
  /** Whom to sync with next; seeded afresh when left out. */
  random?: Random
  /** Makes the seed of a run that is created without one, and what the tests of a robust run are drawn from. */
  freshSeed?: () => string
  /** How long an outside trainer may be quiet; default `DEADLINES.trainerSilentMs`. */
  trainerSilentMs?: number
}

/** Starts a node: serves peers, and goes on with the runs it took part in when it stopped. */
export async function createNode(options: NodeOptions): Promise<ShoalNode> {
  const { network, engine, records } = options
  const { clock = systemClock, metrics = createMetrics() } = options
  const startedMs = clock.now()
  const listeners = new Set<(event: RunEvent) => void>()
  const references = createBlobReferences(options.blobs)
  const { logger = silentLogger } = options
  const log = createEventLog({ records, clock, logger })
  const { runs, blobExchange, services, averaging, stopServing } = composeServices(
    { ...options, blobs: references.blobs, references, clock, metrics, log },
    (event) => {
      const { type, ...fields } = event
      logger.debug(type, fields)
      log.append(event)
      for (const listener of listeners) listener(event)
    },
  )
  // Blobs that nobody keeps belong to a run that could not be read now; another version may.
  const isWhole = await runs.resume()
  const blobs = await createSharedBlobs({ network, records, references, blobExchange })
  if (isWhole) await references.sweep()

  return {
    peerId: network.peerId,
    status: () => ({
      peerId: network.peerId,
      addresses: network.addresses(),
      reachability: network.reachability(),
      nat: network.nat().type,
      relays: network.relays(),
      relaying: network.relaying(),
      links: network.links().length,
      runs: runs.views().length,
      engine: engine.backend,
      uptimeMs: Math.round(clock.now() - startedMs),
      counters: metrics.snapshot(),
    }),
    peers: () => network.links(),
    connect: (address, signal) => network.connect(address, signal),
    diagnose: (asked) => network.diagnose(asked),
    ...runCalls(runs, { network, references, blobExchange, shared: blobs, clock, log }),
    onEvent: (listener) => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    blobs,
    services,
    averaging,
    async stop() {
      await runs.stop()
      await log.close()
      await averaging.close()
      for (const stopOne of stopServing) await stopOne()
      await network.stop()
      await engine.close()
    },
  }
}

type RunCalls = Omit<
  ShoalNode,
  | 'peerId'
  | 'status'
  | 'peers'
  | 'connect'
  | 'diagnose'
  | 'onEvent'
  | 'blobs'
  | 'services'
  | 'averaging'
  | 'stop'
>

function runCalls(runs: RunCollection, deps: StartDependencies & { log: EventLog }): RunCalls {
  const { network, clock, references, log } = deps
  return {
    createRun: async (spec, text, { from, ...creating } = {}) => {
      const start = spec.from === undefined ? undefined : await startingPoint(spec, from, deps)
      return runs.create(spec, { text, start }, creating)
    },
    joinRun: (idOrLink, joining) => runs.join(idOrLink, joining),
    leaveRun: (id) => runs.leave(id),
    listRuns: ({ discover = false, signal } = {}) =>
      listRuns(runs, discover, network, clock, signal),
    run: (id) => runs.get(id).view(),
    runs: () => runs.views(),
    manifest: (id) => runs.get(id).manifest,
    members: (id) => runs.get(id).members(),
    loggedEvents: (id, after) => log.read(runs.get(id).id, after),
    parameters: async (id, signal) => {
      const run = runs.get(id)
      return { ...(await run.parameters(signal)), schema: run.schema }
    },
    trainingScript: (id) => {
      const { script } = runs.get(id)
      if (script !== undefined) return script
      throw new ShoalError(
        'conflict',
        'the embedded engine trains this run: leave it and join it again with --trainer outside',
      )
    },
    invite: (id) => formatRunLink({ id: runs.get(id).id, peers: network.addresses().slice(0, 4) }),
    checkpoints: (id) => runs.get(id).view().checkpoints,
    exportCheckpoint: (id, cid) => exportCheckpoint(runs.get(id), cid, references.blobs),
    writeBoard: (id, key, value) => runs.get(id).writeBoard(key, value),
  }
}

interface Composition {
  runs: RunCollection
  services: Services
  averaging: AveragingGroups
  blobExchange: BlobExchange
  stopServing: (() => void | Promise<void>)[]
}

/** Everything between the network and the API of the node, lower layers first. */
function composeServices(
  options: NodeOptions & {
    references: BlobReferences
    clock: Clock
    metrics: Metrics
    log: EventLog
  },
  emit: (event: RunEvent) => void,
): Composition {
  const { network, records, blobs, references, engine, clock, metrics, log } = options
  const { logger = silentLogger, random = seededRandom(crypto.randomUUID()) } = options
  const { trainerSilentMs } = options
  const { rpc, identity } = network
  const blobExchange = createBlobExchange({ rpc, store: blobs, clock, metrics })
  const exchanges = createExchangeService({ rpc, clock, metrics })
  const states = createStateService({ network, identity, records, clock, random, logger, metrics })
  const stores = { records, blobs, references }
  const services = createServices({ peerId: network.peerId, rpc, clock })
  const ports = { network, engine, blobExchange, exchanges, states }
  const freshSeed = options.freshSeed ?? (() => crypto.randomUUID())
  const observers = { clock, logger, metrics, emit, log }
  const runs = createRunCollection({
    ...stores,
    ...ports,
    ...observers,
    freshSeed,
    trainerSilentMs,
  })
  return {
    runs,
    services,
    averaging: createAveragingGroups({ network, states, exchanges, clock, logger }),
    blobExchange,
    stopServing: [
      serveDirectory(network, () => runs.views()),
      serveSnapshots(rpc, (id) => runs.find(id)),
      () => blobExchange.close(),
      () => exchanges.close(),
      () => states.close(),
      () => services.close(),
    ],
  }
}

type StartDependencies = CheckpointDependencies & { shared: SharedBlobs }

async function startingPoint(
  { model, from = '' }: RunSpec,
  files: ModelFiles | undefined,
  deps: StartDependencies,
): Promise<StartingPoint> {
  if (files !== undefined) return startFromFiles(model.kind, files)
  const cid = parseCid(from)
  try {
    return await startFromCheckpoint(cid, deps)
  } catch (thrown) {
    // Not a checkpoint: of a model that only scripts know it may be a file of tensors.
    if (model.kind === 'gpt' || asFault(thrown).code !== 'spec_invalid') throw thrown
    const signal = deps.clock.deadline(DEADLINES.apiLongMs, `reading ${from}`)
    const { content: tensors } = await deps.shared.open(cid, signal)
    return startFromFiles(model.kind, { tensors })
  }
}

async function listRuns(
  runs: RunCollection,
  discover: boolean,
  network: Network,
  clock: Clock,
  signal?: AbortSignal,
): Promise<RunListing[]> {
  const own = runs.views().map(listingOf)
  if (!discover) return own
  const others = await discoverRuns(network, clock, signal)
  return [...own, ...others.filter(({ id }) => runs.find(id) === undefined)]
}

async function exportCheckpoint(
  run: Run,
  cid: string | undefined,
  blobs: BlobStore,
): Promise<CheckpointFile[]> {
  const chosen = cid ?? run.view().checkpoints.at(-1)?.cid
  if (chosen === undefined)
    throw new ShoalError('not_found', 'this run has no checkpoint yet: wait for its first')
  const checkpoint = await loadCheckpoint(parseCid(chosen), blobs)
  if (checkpoint.run !== run.id)
    throw new ShoalError('not_found', `${chosen} is no checkpoint of this run`)
  const parameters = await loadVector(checkpoint.parameters, checkpoint.parameters.bytes / 4, blobs)
  return exportModel(run.manifest, parameters, {
    run: run.id,
    checkpoint: chosen,
    outerStep: checkpoint.outerStep,
  })
}

function listingOf(view: RunView): RunListing {
  const { id, name, status, parameters, outerStep, outerSteps, members } = view
  return { id, name, status, parameters, outerStep, outerSteps, peers: members.length, sources: [] }
}
