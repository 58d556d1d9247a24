/** Finds the members of a run through the DHT, stays connected to some, and tells of those that come and go. */
import type { CID } from 'multiformats/cid'
import { withDeadline } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { Averaging } from './manifest.ts'
import type { RunContext } from './run-context.ts'

/** First look-ups follow quickly: peers that start together find each other in seconds; later ones only heal. */
const LOOKUP_INTERVALS_MS = [1_000, 2_000, 4_000, 8_000, 15_000, 30_000]
/** Connections kept to members of one run. */
const CONNECTIONS = LIMITS.groupPeers
const CONNECT_MS = 10_000
/** A member that hangs up is dialled at once, but not more often than this. */
const REDIAL_MS = 15_000

/** Pause between two attempts of a peer that is alone. */
const SEEK_AGAIN_MS = 1_000

/** What meets its members. */
export interface Host extends Pick<RunContext, 'clock' | 'logger' | 'id' | 'self'> {
  network: Pick<RunContext['network'], 'connect' | 'connectedPeers'>
  state: Pick<RunContext['state'], 'sync'>
}

/** What looks for its members: a run, or an averaging group. */
export type Seeker = Pick<RunContext, 'network' | 'state' | 'clock' | 'logger' | 'id' | 'self'> & {
  membership: Pick<RunContext['membership'], 'others'>
}

/** Runs until aborted; never rejects. */
export async function discoverMembers(run: Seeker, cid: CID, signal: AbortSignal): Promise<void> {
  run.network.discovery.provide(cid)
  try {
    for (let round = 0; !signal.aborted; round++) {
      // All at once: under churn many of them are gone, and each of those costs a deadline.
      const members = run.membership.others().slice(0, CONNECTIONS)
      const meetings = members.map(({ peer }) => introduce(run, peer, signal))
      for await (const peer of run.network.discovery.find(cid, { signal }))
        meetings.push(introduce(run, peer, signal))
      await Promise.all(meetings)
      const intervalMs = LOOKUP_INTERVALS_MS[Math.min(round, LOOKUP_INTERVALS_MS.length - 1)] ?? 0
      await run.clock.sleep(intervalMs, signal)
    }
  } catch (thrown) {
    if (!signal.aborted)
      run.logger.warn('member_discovery_ended', { run: run.id, reason: String(thrown) })
  } finally {
    run.network.discovery.unprovide(cid)
  }
}

/** Meets those of `peers` again that this one is not connected to, over and over until the signal fires. */
export async function seekMembers(
  run: Host,
  peers: () => readonly string[],
  signal: AbortSignal,
): Promise<void> {
  for (let from = 0; !signal.aborted; from += CONNECTIONS) {
    const connected = new Set(run.network.connectedPeers())
    const missing = peers().filter((peer) => !connected.has(peer))
    // Many of them may be gone: others are tried each time.
    const start = missing.length === 0 ? 0 : from % missing.length
    const some = [...missing.slice(start), ...missing.slice(0, start)].slice(0, CONNECTIONS)
    await Promise.all(some.map((peer) => introduce(run, peer, signal)))
    await run.clock.sleep(SEEK_AGAIN_MS, signal).catch(() => {})
  }
}

async function introduce(run: Host, peer: string, signal: AbortSignal): Promise<void> {
  if (peer === run.self || run.network.connectedPeers().includes(peer)) return
  try {
    await withDeadline(run.clock, CONNECT_MS, `connecting to ${peer}`, signal, async (limited) => {
      await run.network.connect(peer, limited)
      await run.state.sync(peer, limited)
    })
  } catch (thrown) {
    run.logger.debug('member_unreachable', { run: run.id, peer, reason: String(thrown) })
  }
}

/** A run whose members' connections are watched. */
export interface Watched extends Host {
  network: Host['network'] & Pick<RunContext['network'], 'onConnect' | 'onDisconnect'>
  manifest: { averaging: Pick<Averaging, 'rule'> }
  membership: Pick<RunContext['membership'], 'doubt' | 'trust'> & {
    others(): readonly { peer: string }[]
  }
}

/**
 * Leaves a member whose connection has ended out of rounds until it is back, which is tried at once: most often its
 * process is gone, and all who were connected to it know that before the next groups are made. Not in an all-reduce run:
 * its members must come to the same group, which they do in the round. Returns the function that stops it.
 */
export function watchConnections(run: Watched, signal: AbortSignal): () => Promise<void> {
  if (run.manifest.averaging.rule === 'diloco') return async () => {}
  /** Each stays for as long as its peer is not dialled again: one that hangs up all the time is left to the look-ups. */
  const meetings = new Map<string, Promise<void>>()
  const meet = async (peer: string): Promise<void> => {
    await introduce(run, peer, signal)
    await run.clock.sleep(REDIAL_MS, signal).catch(() => {})
    meetings.delete(peer)
  }
  const forgetLoss = run.network.onDisconnect((peer) => {
    if (!run.membership.others().some((member) => member.peer === peer)) return
    run.membership.doubt(peer)
    if (!meetings.has(peer) && meetings.size < CONNECTIONS) meetings.set(peer, meet(peer))
  })
  const forgetReturn = run.network.onConnect((peer) => run.membership.trust(peer))
  return async () => {
    forgetLoss()
    forgetReturn()
    await Promise.all(meetings.values())
  }
}

/** Emits `member` events for every change of the membership; returns the function that stops it. */
export function watchMembers(run: RunContext): () => void {
  let known = new Set<string>()
  return run.state.onChange(() => {
    const present = new Set(
      run.membership
        .others()
        .filter(({ record }) => record.status !== 'leaving')
        .map(({ peer }) => peer),
    )
    for (const peer of present) if (!known.has(peer)) emit(run, peer, 'joined')
    for (const peer of known) if (!present.has(peer)) emit(run, peer, 'left')
    known = present
  })
}

function emit(run: RunContext, peer: string, change: 'joined' | 'left'): void {
  run.emit({ type: 'member', run: run.id, peer, change })
}
