/** The runs of one node: created, joined, resumed, left. */
import { matchesCid } from '../store/content.ts'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { directoryCid } from './directory.ts'
import type { EventLog } from './event-log.ts'
import type { Manifest, RunSpec } from './manifest.ts'
import { noData } from './preparation.ts'
import { createManifest, type RunSources } from './run-creation.ts'
import { decodeManifest, parseRunId, parseRunLink, type RunLink } from './run-id.ts'
import { storedRuns, type Membership } from './run-store.ts'
import { openRun, type Run, type RunDependencies } from './run.ts'
import type { TrainerKind } from './trainer.ts'
import { storeBytes } from './vector-blobs.ts'
import type { RunView } from './view.ts'

export interface TrainerOptions {
  /** Who does the inner steps; default the embedded engine where it knows the model. */
  trainer?: TrainerKind | undefined
}

export interface JoinOptions extends TrainerOptions {
  /** This peer's own data, compulsory when the manifest shares none. */
  text?: Uint8Array | undefined
  signal?: AbortSignal | undefined
}

export interface RunCollection {
  create(spec: RunSpec, sources: RunSources, options?: TrainerOptions): Promise<RunView>
  join(idOrLink: string, options?: JoinOptions): Promise<RunView>
  leave(id: string): Promise<void>
  /** Throws `run_unknown`. */
  get(id: string): Run
  find(id: string): Run | undefined
  views(): RunView[]
  /** Goes on with the runs this node took part in when it stopped. Whether all that is stored is known again. */
  resume(): Promise<boolean>
  stop(): Promise<void>
}

/** How long a join looks for somebody who has the manifest. */
const JOIN_MS = 60_000
const LOOK_AGAIN_MS = 1_000

export interface RunCollectionDependencies extends RunDependencies {
  log: Pick<EventLog, 'forget'>
}

export function createRunCollection(deps: RunCollectionDependencies): RunCollection {
  const { network, references, clock, freshSeed, log } = deps
  const runs = new Map<string, Run>()
  const { inTurn, settled } = createTurns()
  const ending = new AbortController()
  const get = (id: string): Run => {
    const run = runs.get(id)
    if (run !== undefined) return run
    throw new ShoalError(
      'run_unknown',
      `this node takes part in no run ${id}: see \`shoal run list\``,
    )
  }
  return {
    get,
    find: (id) => runs.get(id),
    views: () => [...runs.values()].map((run) => run.view()),
    async create(spec, sources, options = {}) {
      const trainer = trainerFor(spec.model.kind, options.trainer)
      const creator = { peer: network.peerId, seed: freshSeed() }
      const pins = references.pin()
      try {
        const stores = { blobs: pins.blobs, clock }
        const created = await createManifest(spec, sources, creator, stores)
        const membership = { version: 1, text: created.text, trainer } as const
        const input = { ...created, sources: [], membership }
        return await inTurn(created.id, () => start(runs, deps, input))
      } finally {
        await pins.release()
      }
    },
    async join(idOrLink, options = {}) {
      const link = parseRunLink(idOrLink)
      // One that is being left is gone in a moment.
      const present = await inTurn(link.id, async () => runs.get(link.id)?.view())
      if (present !== undefined) return present
      const { signal } = options
      const either = signal === undefined ? ending.signal : AbortSignal.any([ending.signal, signal])
      const pins = references.pin()
      const release = references.retain([link.id])
      try {
        const input = await joinInput(link, options, { ...deps, blobs: pins.blobs }, either)
        return await inTurn(link.id, () => start(runs, deps, input))
      } finally {
        await release()
        await pins.release()
      }
    },
    async leave(id) {
      await inTurn(id, async () => {
        const run = get(id)
        // Until it is gone others may still ask for its state.
        await run.leave().finally(() => runs.delete(id))
        await log.forget(id)
      })
      const directory = await directoryCid()
      const isPublic = [...runs.values()].some(({ manifest }) => manifest.public)
      if (!isPublic) network.discovery.unprovide(directory)
    },
    resume: () => resume(runs, deps),
    async stop() {
      ending.abort(new ShoalError('aborted', 'the node is stopping'))
      const present = [...runs.values()]
      await Promise.allSettled(present.map((run) => run.stop()))
      // A run that is being left is forgotten while the stores are still open, one that was being opened is stopped.
      await settled()
      const late = [...runs.values()].filter((run) => !present.includes(run))
      await Promise.allSettled(late.map((run) => run.stop()))
    },
  }
}

/** One change of a run at a time: it is left for good before it is joined again. */
function createTurns(): {
  inTurn: <T>(id: string, change: () => Promise<T>) => Promise<T>
  /** Resolves when the changes under way have ended. */
  settled: () => Promise<void>
} {
  const turns = new Map<string, Promise<unknown>>()
  return {
    async inTurn(id, change) {
      const result = (turns.get(id) ?? Promise.resolve()).then(change)
      const turn = result.catch(() => {})
      turns.set(id, turn)
      try {
        return await result
      } finally {
        if (turns.get(id) === turn) turns.delete(id)
      }
    },
    async settled() {
      await Promise.all(turns.values())
    },
  }
}

function trainerFor(
  model: Manifest['model']['kind'],
  wanted: TrainerKind | undefined,
): TrainerKind {
  if (model === 'gpt') return wanted ?? 'embedded'
  if (wanted !== 'embedded') return 'outside'
  throw new ShoalError(
    'spec_invalid',
    'the embedded engine does not know an external model: use the outside trainer (--trainer outside)',
  )
}

interface StartInput {
  id: string
  manifest: Manifest
  sources: readonly string[]
  /** Undefined when the run is resumed. */
  membership?: Membership
}

/** What it takes to start a run of others: its manifest from one of them, and this peer's own text. */
async function joinInput(
  link: RunLink,
  { text, ...options }: JoinOptions,
  deps: RunDependencies,
  signal: AbortSignal,
): Promise<StartInput> {
  const found = await findManifest(link, deps, signal)
  const trainer = trainerFor(found.manifest.model.kind, options.trainer)
  const isShared = found.manifest.data?.text !== null
  if (text === undefined && !isShared && trainer === 'embedded') throw noData()
  const own = text === undefined ? null : await storeBytes(text, deps.blobs)
  return { ...found, id: link.id, membership: { version: 1, text: own, trainer } }
}

async function start(
  runs: Map<string, Run>,
  deps: RunDependencies,
  { id, manifest, sources, membership }: StartInput,
): Promise<RunView> {
  // Asked for twice, as by a caller who has not heard the first answer.
  const present = runs.get(id)
  if (present !== undefined) return present.view()
  if (runs.size >= LIMITS.activeRuns) {
    throw new ShoalError('limit_exceeded', `this node is in ${runs.size} runs already: leave one`)
  }
  const options = membership === undefined ? { sources } : { sources, membership }
  const run = await openRun(id, manifest, deps, options)
  runs.set(id, run)
  if (manifest.public) deps.network.discovery.provide(await directoryCid())
  return run.view()
}

async function resume(runs: Map<string, Run>, deps: RunDependencies): Promise<boolean> {
  let isWhole = true
  for (const { id, manifest } of await storedRuns(deps.records)) {
    try {
      const bytes = await storedManifest(id, manifest, deps)
      const run = { id, manifest: decodeManifest(bytes), sources: [] }
      const { status, error } = await start(runs, deps, run)
      if (status === 'failed' || error !== null) isWhole = false
      deps.logger.info('run_resumed', { run: id })
    } catch (thrown) {
      // One damaged run must not keep the node and its other runs down.
      deps.logger.error('run_not_resumed', { run: id, reason: asFault(thrown).message })
      isWhole = false
    }
  }
  return isWhole
}

/** Of two copies one that is whole; the blob is what others ask for. */
async function storedManifest(
  id: string,
  copy: Uint8Array | undefined,
  { blobs }: RunDependencies,
): Promise<Uint8Array> {
  const cid = parseRunId(id)
  const bytes = await blobs.get(cid)
  if (bytes !== undefined) return bytes
  if (copy === undefined || !(await matchesCid(copy, cid))) {
    throw new ShoalError('state_corrupt', "the run's manifest is damaged: join the run again")
  }
  await blobs.put(cid, copy)
  return copy
}

/** Connects to the link's peers and to providers of the run until one of them gives the manifest. */
async function findManifest(
  { id, peers }: RunLink,
  { network, blobs, blobExchange, clock }: RunDependencies,
  signal: AbortSignal,
): Promise<{ manifest: Manifest; sources: string[] }> {
  const cid = parseRunId(id)
  const deadline = clock.deadline(JOIN_MS, 'looking for the run', signal)
  const sources: string[] = []
  const found = new AbortController()
  const asking = AbortSignal.any([deadline, found.signal])
  const ask = async (peer: string): Promise<void> => {
    try {
      const connected = peer.startsWith('/') ? await network.connect(peer, asking) : peer
      await blobExchange.fetch(cid, [connected], { signal: asking })
      sources.push(connected)
      found.abort()
    } catch {
      // Somebody else may have it.
    }
  }
  await Promise.all(peers.map(ask))
  // The provider record of a run that was created a moment ago may still be on its way through the DHT.
  while (!asking.aborted) {
    // All at once: of the providers that the DHT remembers some are gone.
    const asked = network.connectedPeers().slice(0, LIMITS.providersPerCid).map(ask)
    for await (const peer of network.discovery.find(cid, { signal: asking })) asked.push(ask(peer))
    await Promise.all(asked)
    await clock.sleep(LOOK_AGAIN_MS, asking).catch(() => {})
  }
  signal.throwIfAborted()
  const bytes = await blobs.get(cid)
  if (bytes === undefined) {
    throw new ShoalError(
      'run_unknown',
      `nobody found has run ${id}: check the id, and that this node is connected (\`shoal peers\`)`,
    )
  }
  return { manifest: decodeManifest(bytes), sources }
}
