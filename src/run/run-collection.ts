/** The runs of one node: created, joined, resumed, left. */
import type { Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { directoryCid } from './directory.ts'
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
  /** Goes on with the runs this node took part in when it stopped. */
  resume(): Promise<void>
  stop(): Promise<void>
}

/** How long a join looks for somebody who has the manifest. */
const JOIN_MS = 60_000
const LOOK_AGAIN_MS = 1_000

export function createRunCollection(deps: RunDependencies, freshSeed: () => string): RunCollection {
  const { network, blobs, clock } = deps
  const runs = new Map<string, Run>()
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
      const created = await createManifest(spec, sources, creator, { blobs, clock })
      const membership = { version: 1, text: created.text, trainer } as const
      return start(runs, deps, { ...created, sources: [], membership })
    },
    async join(idOrLink, { text, signal, ...options } = {}) {
      const link = parseRunLink(idOrLink)
      const present = runs.get(link.id)
      if (present !== undefined) return present.view()
      const either = signal === undefined ? ending.signal : AbortSignal.any([ending.signal, signal])
      const found = await findManifest(link, deps, either)
      const trainer = trainerFor(found.manifest.model.kind, options.trainer)
      const isShared = found.manifest.data?.text !== null
      if (text === undefined && !isShared && trainer === 'embedded') throw noData()
      const own = text === undefined ? null : await storeBytes(text, blobs)
      const membership = { version: 1, text: own, trainer } as const
      return start(runs, deps, { ...found, id: link.id, membership })
    },
    async leave(id) {
      const run = get(id)
      runs.delete(id)
      await run.leave()
      const isPublic = [...runs.values()].some(({ manifest }) => manifest.public)
      if (!isPublic) network.discovery.unprovide(await directoryCid())
    },
    resume: () => resume(runs, deps),
    async stop() {
      ending.abort(new ShoalError('aborted', 'the node is stopping'))
      await Promise.allSettled([...runs.values()].map((run) => run.stop()))
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

async function start(
  runs: Map<string, Run>,
  deps: RunDependencies,
  { id, manifest, sources, membership }: StartInput,
): Promise<RunView> {
  if (runs.has(id)) throw new ShoalError('conflict', `this node is in run ${id} already`)
  if (runs.size >= LIMITS.activeRuns) {
    throw new ShoalError('limit_exceeded', `this node is in ${runs.size} runs already: leave one`)
  }
  const options = membership === undefined ? { sources } : { sources, membership }
  const run = await openRun(id, manifest, deps, options)
  runs.set(id, run)
  if (manifest.public) deps.network.discovery.provide(await directoryCid())
  return run.view()
}

async function resume(runs: Map<string, Run>, deps: RunDependencies): Promise<void> {
  for (const id of await storedRuns(deps.records)) {
    const bytes = await deps.blobs.get(parseRunId(id))
    if (bytes === undefined) {
      const reason = 'its manifest is not in the store: join it again'
      deps.logger.error('run_not_resumed', { run: id, reason })
      continue
    }
    try {
      await start(runs, deps, { id, manifest: decodeManifest(bytes), sources: [] })
      deps.logger.info('run_resumed', { run: id })
    } catch (thrown) {
      // One damaged run must not keep the node and its other runs down.
      deps.logger.error('run_not_resumed', { run: id, reason: asFault(thrown).message })
    }
  }
}

/** Connects to the link's peers and to providers of the run until one of them gives the manifest. */
async function findManifest(
  { id, peers }: RunLink,
  { network, blobs, blobExchange, clock }: RunDependencies,
  signal: AbortSignal,
): Promise<{ manifest: Manifest; sources: string[] }> {
  const cid = parseRunId(id)
  const deadline = clock.deadline(JOIN_MS, 'looking for the run', signal)
  const sources = new Set<string>()
  const ask = async (peer: string): Promise<void> => {
    try {
      const connected = peer.startsWith('/') ? await network.connect(peer, deadline) : peer
      await blobExchange.fetch(cid, [connected], { signal: deadline })
      sources.add(connected)
    } catch {
      // Somebody else may have it.
    }
  }
  for (const peer of peers) await ask(peer)
  // The provider record of a run that was created a moment ago may still be on its way through the DHT.
  while (!deadline.aborted && sources.size === 0) {
    for await (const peer of network.discovery.find(cid, { signal: deadline })) await ask(peer)
    if (sources.size > 0) break
    for (const peer of network.connectedPeers().slice(0, LIMITS.providersPerCid)) await ask(peer)
    if (sources.size === 0) await sleepQuietly(clock, deadline)
  }
  signal.throwIfAborted()
  const bytes = await blobs.get(cid)
  if (bytes === undefined) {
    throw new ShoalError(
      'run_unknown',
      `nobody found has run ${id}: check the id, and that this node is connected (\`shoal peers\`)`,
    )
  }
  return { manifest: decodeManifest(bytes), sources: [...sources] }
}

async function sleepQuietly(clock: Clock, signal: AbortSignal): Promise<void> {
  await clock.sleep(LOOK_AGAIN_MS, signal).catch(() => {})
}
