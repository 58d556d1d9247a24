/**
 * Providers of CIDs in the DHT: announcing this node, and finding others.
 *
 * A provider record lives an hour at the servers closest to the CID. It is announced at once, again at growing intervals
 * up to 20 minutes (while the network is young, the closest servers change), and soon after a server connects (one that
 * restarted has lost its records). Records are hints: a dead provider stays listed until its record expires.
 */
import type { Libp2p } from '@libp2p/interface'
import type { CID } from 'multiformats/cid'
import { abortReason, raceSignal } from '../clock.ts'
import type { Clock } from '../clock.ts'
import { messageOf, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Random } from '../random.ts'
import { watchDhtServers } from './dht-servers.ts'
import type { DhtServers, DhtServersOptions } from './dht-servers.ts'
import type { Discovery } from './network.ts'

const TICK_MS = 200
const REPEAT_FIRST_MS = 15_000
const REPEAT_MAX_MS = 20 * 60_000
/** After an announcement, before one with other addresses: relays come and go together. */
const CHANGE_MS = 3_000
const RETRY_FIRST_MS = 1_000
const RETRY_MAX_MS = 60_000
const ANNOUNCEMENTS_AT_ONCE = 4

export interface DiscoveryOptions extends Omit<DhtServersOptions, 'libp2p' | 'onServer'> {
  self: string
  libp2p: Pick<Libp2p, 'contentRouting' | 'addEventListener' | 'removeEventListener'>
  random: Random
  logger: Logger
  /** Called now and then while no DHT server is known although peers are connected. */
  seekServers: () => Promise<void>
}

export interface DiscoveryService extends Discovery {
  /** Waits a moment for the first DHT server to ask, if one may turn up. Rejects with the signal's reason. */
  untilServer(signal: AbortSignal): Promise<void>
  stop(): void
}

interface Announcement {
  cid: CID
  dueAt: number
  announcedAt: number
  /** Until the next one, after success and after failure. */
  repeatMs: number
  retryMs: number
  isRunning: boolean
}

export function createDiscovery(options: DiscoveryOptions): DiscoveryService {
  const { dht, clock, logger } = options
  const stopping = new AbortController()
  const kept = new Map<string, Announcement>()
  const onServer = (): void => announceSoon(kept, REPEAT_FIRST_MS, clock)
  // A record names the addresses that this node had when it was announced.
  const onAddresses = (): void => announceSoon(kept, CHANGE_MS, clock)
  const servers = watchDhtServers({ ...options, onServer })
  options.libp2p.addEventListener('self:peer:update', onAddresses)
  keepAnnounced(kept, servers, options, stopping.signal).catch((thrown: unknown) => {
    if (!stopping.signal.aborted) logger.error('discovery_failed', { message: messageOf(thrown) })
  })

  return {
    provide(cid) {
      const name = cid.toString()
      if (kept.has(name)) return
      if (kept.size >= LIMITS.providedCids) {
        throw new ShoalError('limit_exceeded', `this node announces ${kept.size} CIDs already`)
      }
      kept.set(name, {
        cid,
        dueAt: clock.now(),
        announcedAt: Number.NEGATIVE_INFINITY,
        repeatMs: REPEAT_FIRST_MS,
        retryMs: RETRY_FIRST_MS,
        isRunning: false,
      })
    },
    unprovide(cid) {
      kept.delete(cid.toString())
      dht.cancelReprovide(cid).catch((thrown: unknown) => {
        logger.debug('unprovide_failed', { message: messageOf(thrown) })
      })
    },
    find: (cid, { signal, deadlineMs = DEADLINES.findProvidersMs } = {}) => {
      const outer =
        signal === undefined ? stopping.signal : AbortSignal.any([signal, stopping.signal])
      const limit = clock.deadline(deadlineMs, 'finding providers', outer)
      return findProviders(cid, servers, options, limit)
    },
    untilServer: (signal) => servers.untilKnown(signal),
    stop() {
      stopping.abort()
      options.libp2p.removeEventListener('self:peer:update', onAddresses)
      servers.stop()
    },
  }
}

type Kept = ReadonlyMap<string, Announcement>

/** Announces all again, each so long after the last time. */
function announceSoon(kept: Kept, afterMs: number, clock: Clock): void {
  for (const announcement of kept.values()) {
    const soon = Math.max(clock.now(), announcement.announcedAt + afterMs)
    announcement.dueAt = Math.min(announcement.dueAt, soon)
  }
}

async function keepAnnounced(
  kept: Kept,
  servers: DhtServers,
  options: DiscoveryOptions,
  stopping: AbortSignal,
): Promise<void> {
  const { dht, clock } = options
  let seekAt = 0
  let seekMs = RETRY_FIRST_MS
  for (;;) {
    const now = clock.now()
    // A server keeps its own record too, for those who ask it.
    if (servers.known() > 0 || dht.getMode() === 'server') announceDue(kept, options, stopping)
    if (servers.known() > 0) {
      seekMs = RETRY_FIRST_MS
    } else if (now >= seekAt && options.isConnected()) {
      await options.seekServers()
      seekAt = clock.now() + seekMs
      seekMs = Math.min(2 * seekMs, RETRY_MAX_MS)
    }
    await clock.sleep(TICK_MS, stopping)
  }
}

function announceDue(kept: Kept, options: DiscoveryOptions, stopping: AbortSignal): void {
  const now = options.clock.now()
  let running = [...kept.values()].filter(({ isRunning }) => isRunning).length
  for (const announcement of kept.values()) {
    if (running >= ANNOUNCEMENTS_AT_ONCE) return
    if (announcement.isRunning || announcement.dueAt > now) continue
    running++
    void announce(announcement, options, stopping)
  }
}

async function announce(
  announcement: Announcement,
  { dht, clock, random, logger }: DiscoveryOptions,
  stopping: AbortSignal,
): Promise<void> {
  announcement.isRunning = true
  const limit = clock.deadline(DEADLINES.provideMs, 'announcing', stopping)
  let stored = 0
  try {
    for await (const event of untilAborted(
      dht.provide(announcement.cid, { signal: limit }),
      limit,
    )) {
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'ADD_PROVIDER') stored++
    }
  } catch (thrown) {
    logger.debug('announcement_failed', { message: messageOf(thrown) })
  } finally {
    announcement.isRunning = false
  }
  const now = clock.now()
  if (stored > 0) announcement.announcedAt = now
  const waitMs = stored > 0 ? announcement.repeatMs : announcement.retryMs
  announcement.repeatMs = stored > 0 ? Math.min(2 * waitMs, REPEAT_MAX_MS) : REPEAT_FIRST_MS
  announcement.retryMs = stored > 0 ? RETRY_FIRST_MS : Math.min(2 * waitMs, RETRY_MAX_MS)
  announcement.dueAt = now + waitMs * (0.75 + random.uniform() / 4)
}

async function* findProviders(
  cid: CID,
  servers: DhtServers,
  options: DiscoveryOptions,
  limit: AbortSignal,
): AsyncGenerator<string> {
  const { libp2p, logger } = options
  const seen = new Set<string>([options.self])
  try {
    await servers.untilKnown(limit)
    // Through libp2p rather than the DHT: it also keeps the providers' addresses, so that they can be dialled.
    const providers = libp2p.contentRouting.findProviders(cid, { signal: limit })
    for await (const { id } of untilAborted(providers, limit)) {
      const peer = id.toString()
      if (seen.has(peer)) continue
      seen.add(peer)
      yield peer
      if (seen.size > LIMITS.providersPerCid) return
    }
  } catch (thrown) {
    if (!limit.aborted) logger.debug('find_failed', { message: messageOf(thrown) })
  }
}

/** A query of kad-dht may sit in a dial that does not listen to the signal: it is left behind then. */
async function* untilAborted<T>(source: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  const iterator = source[Symbol.asyncIterator]()
  try {
    for (;;) {
      if (signal.aborted) throw abortReason(signal)
      const next = await raceSignal(iterator.next(), signal)
      if (next.done === true) return
      yield next.value
    }
  } finally {
    Promise.resolve(iterator.return?.()).catch(() => {})
  }
}
