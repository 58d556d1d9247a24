/** One transfer of blobs from several peers: who is asked for what, and what an answer means. */
import type { CID } from 'multiformats/cid'
import type { Clock } from '../clock.ts'
import { abortReason } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Metrics } from '../metrics.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { matchesCid } from '../store/content.ts'
import type { PeerRpc } from './network.ts'

export const BLOB_METHOD = 'blob/get'

/** Peer ids to ask; a function is asked again for each blob, so that peers may join a transfer. */
export type BlobSources = readonly string[] | (() => readonly string[])

/** Failures in a row after which a source is given up; between them it rests, twice as long each time. */
const STRIKES = 3
const REST_MS = 500

interface Source {
  peer: string
  inFlight: number
  /** Requests it may have in flight: one more after a quick answer, half after a slow one. A slow uplink shares its rate among them, and each has the deadline of one. */
  window: number
  strikes: number
  /** Failures of requests made before this are the same failure. */
  struckAt: number
  restsUntil: number
  isGivenUp: boolean
  /** Names of blobs that it does not have. */
  lacks: Set<string>
  /** What it answered last, when that was not a blob. */
  fault: string | undefined
}

export interface Transfer {
  rpc: PeerRpc
  store: BlobStore
  metrics: Metrics
  clock: Clock
  wanted: readonly CID[]
  sources: BlobSources
  signal: AbortSignal | undefined
  onStored: () => void
}

interface RunningTransfer extends Transfer {
  /** Memory for one blob each, used again and again: no more than pulls at once. */
  memory: Uint8Array[]
}

/** Moves all `wanted` into the store. Rejects with `blob_unavailable`, the store's fault or the signal's reason. */
export async function transferBlobs(options: Transfer): Promise<void> {
  const transfer = { ...options, memory: [] }
  const { clock, signal } = transfer
  const ending = new AbortController()
  const limited = signal === undefined ? ending.signal : AbortSignal.any([ending.signal, signal])
  const queue = [...transfer.wanted]
  const sources = new Map<string, Source>()
  const running = new Set<Promise<void>>()
  try {
    while (queue.length > 0 || running.size > 0) {
      if (signal?.aborted) throw abortReason(signal)
      addNew(sources, transfer.sources)
      startPulls(transfer, limited, queue, sources, running)
      const restMs = restOf(queue, sources, clock.now())
      if (running.size === 0 && restMs === undefined) throw unavailable(queue, sources)
      await firstOf(running, restMs, clock, limited)
    }
  } finally {
    ending.abort()
  }
}

function addNew(known: Map<string, Source>, sources: BlobSources): void {
  for (const peer of typeof sources === 'function' ? sources() : sources) {
    if (known.has(peer) || known.size >= LIMITS.runPeers) continue
    known.set(peer, {
      peer,
      inFlight: 0,
      window: 1,
      strikes: 0,
      struckAt: -1,
      restsUntil: 0,
      isGivenUp: false,
      lacks: new Set(),
      fault: undefined,
    })
  }
}

/** Gives each source in turn one more blob, until all are full: the first must not take everything. */
function startPulls(
  transfer: RunningTransfer,
  signal: AbortSignal,
  queue: CID[],
  sources: ReadonlyMap<string, Source>,
  running: Set<Promise<void>>,
): void {
  const now = transfer.clock.now()
  const free = [...sources.values()].filter(
    (source) => !source.isGivenUp && source.restsUntil <= now,
  )
  let hasStarted = true
  while (hasStarted) {
    hasStarted = false
    for (const source of free) {
      if (running.size >= LIMITS.chunksFetched) return
      if (source.inFlight >= source.window) continue
      const index = queue.findIndex((cid) => !source.lacks.has(cid.toString()))
      const [cid] = index < 0 ? [] : queue.splice(index, 1)
      if (cid === undefined) continue
      hasStarted = true
      const pull: Promise<void> = pullOne(transfer, signal, source, cid)
        .then((isStored) => {
          if (!isStored) queue.unshift(cid)
          return undefined
        })
        .finally(() => running.delete(pull))
      // The loop hears of a failure through the race; a second one has nobody left to hear it.
      pull.catch(() => {})
      running.add(pull)
    }
  }
}

/** Whether the blob is in the store now. Rejects only when the store fails. */
async function pullOne(
  transfer: RunningTransfer,
  signal: AbortSignal,
  source: Source,
  cid: CID,
): Promise<boolean> {
  const { store, metrics, memory, onStored } = transfer
  const into = memory.pop() ?? new Uint8Array(LIMITS.blobBytes)
  try {
    const bytes = await ask(transfer, signal, source, cid, into)
    if (bytes === undefined) return false
    if (bytes.length > LIMITS.blobBytes || !(await matchesCid(bytes, cid))) {
      metrics.add('blobs_rejected_total')
      source.isGivenUp = true
      source.fault = 'blob_corrupt'
      return false
    }
    metrics.add('blob_bytes_received_total', bytes.length)
    await store.put(cid, bytes)
    onStored()
    return true
  } finally {
    memory.push(into)
  }
}

/** What the source answers; undefined when that is a fault, which is then held against it. */
async function ask(
  { rpc, clock }: Transfer,
  signal: AbortSignal,
  source: Source,
  cid: CID,
  into: Uint8Array,
): Promise<Uint8Array | undefined> {
  const startedAt = clock.now()
  source.inFlight++
  try {
    const options = { lane: 'bulk', signal, into } as const
    const bytes = await rpc.call(source.peer, BLOB_METHOD, cid.bytes, options)
    source.strikes = 0
    adjustWindow(source, clock.now() - startedAt)
    return bytes
  } catch (thrown) {
    const { code } = asFault(thrown)
    if (code === 'not_found') source.lacks.add(cid.toString())
    else strike(source, startedAt, clock.now())
    source.fault = code
    return undefined
  } finally {
    source.inFlight--
  }
}

function strike(source: Source, startedAt: number, now: number): void {
  if (startedAt <= source.struckAt) return
  source.strikes++
  source.struckAt = now
  source.restsUntil = now + REST_MS * 2 ** (source.strikes - 1)
  source.window = 1
  source.isGivenUp = source.strikes >= STRIKES
}

function adjustWindow(source: Source, elapsedMs: number): void {
  if (elapsedMs < DEADLINES.chunkMs / 8)
    source.window = Math.min(source.window + 1, LIMITS.chunksInFlight)
  else if (elapsedMs > DEADLINES.chunkMs / 3) source.window = Math.max(1, source.window >> 1)
}

/** Until a resting source may be asked for something again; undefined when none will be. */
function restOf(
  queue: readonly CID[],
  sources: ReadonlyMap<string, Source>,
  now: number,
): number | undefined {
  const rests = [...sources.values()]
    .filter(({ isGivenUp, restsUntil }) => !isGivenUp && restsUntil > now)
    .filter(({ lacks }) => queue.some((cid) => !lacks.has(cid.toString())))
    .map(({ restsUntil }) => restsUntil - now)
  return rests.length === 0 ? undefined : Math.min(...rests)
}

async function firstOf(
  running: ReadonlySet<Promise<void>>,
  restMs: number | undefined,
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  const nap = new AbortController()
  const waits = [...running]
  if (restMs !== undefined) {
    waits.push(clock.sleep(restMs, AbortSignal.any([signal, nap.signal])).catch(() => {}))
  }
  try {
    await Promise.race(waits)
  } finally {
    nap.abort()
  }
}

function unavailable(queue: readonly CID[], sources: ReadonlyMap<string, Source>): ShoalError {
  const name = queue[0]?.toString() ?? ''
  const faults = [...new Set([...sources.values()].map(({ fault }) => fault ?? 'not_found'))]
  const why = sources.size === 0 ? 'nobody to ask' : `${sources.size} asked: ${faults.join(', ')}`
  return new ShoalError('blob_unavailable', `blob ${name} could not be fetched (${why})`, {
    details: { cid: name },
  })
}
