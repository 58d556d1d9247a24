/**
 * The members a peer counts on in a round: those of the shared state that train, minus those it has reason to doubt.
 * And how it stands to them: in step, behind, out of touch.
 *
 * A member that did not answer in a round is left out until its record moves on: one dead peer costs its partners one
 * wait, not one per round until its record expires.
 */
import { LIMITS } from '../limits.ts'
import type { Member, SharedState } from '../state/shared-state.ts'
import { lowerMedian } from './pace.ts'

/** Outer steps a record may lag behind the own step before its owner is taken for gone or resyncing. */
const RECORD_LAG = 8
/**
 * Gossip runs: the front of the swarm is where at least this share of the others is: of five and more it takes two, of
 * fewer the foremost one is enough. In all-reduce runs it always is: all must come to one place, and nobody runs ahead
 * of others whom it hears.
 */
const FRONT_SHARE = 1 / 4
/** In robust runs, where so many others train, no peer is followed alone: it may lie about its step. */
const ROBUST_OTHERS = 3
const ROBUST_FRONT = 2

export interface Membership {
  /** Members at most `reach` outer steps away from `outerStep`, ordered by peer id: for its round. */
  trainers(outerStep: number, reach?: number): Member[]
  /** Peer ids for the final merge, own excluded, ordered. */
  mergers(): string[]
  /** Everyone but this peer, whatever the status. */
  others(): Member[]
  /** Outer steps between the median of the others that train and `outerStep`; negative when this peer is ahead. */
  lag(outerStep: number): number
  /**
   * The swarm's front, foremost first: members that are about as far as one another, with enough of the others there or
   * beyond, and so far away that no round is shared with them; else none. Who runs ahead of the front leads nobody: to
   * such a peer the front is behind it, once nobody is near.
   */
  front(outerStep: number): Member[]
  /** Remembers who is in step with this peer now (of `peers`, where only these have its state), and the tokens of both. */
  noteInStep(outerStep: number, ownTokens: number, peers?: readonly string[]): void
  /** This peer's work since it was last in step with `members`. */
  workSince(members: readonly Member[], ownTokens: number): WorkApart
  /** Leaves `peer` out until its record changes, or it is trusted again. */
  doubt(peer: string): void
  trust(peer: string): void
}

export interface WorkApart {
  /** On average over the members that it was in step with once. */
  tokens: number
  /**
   * As a share of what the swarm's peers have done since on average: 0 of a peer that was away, 1 (at most) of one that
   * trained as much. Whoever is not among the members is taken to have done as much as this peer: it is of the same part
   * of a swarm that was split. Null where the members have done nothing since, or were never met.
   */
  share: number | null
}

interface Acquaintance {
  theirTokens: number
  ownTokens: number
}

export interface MembershipOptions {
  /** How many outer steps apart partners may be. */
  staleness: number
  /** Whether members may lie. */
  isRobust: boolean
  /** Whether all average with all. */
  isExact: boolean
  /**
   * Peers that this one is connected to. In all-reduce runs where the swarm is is told by these, if there are any: records
   * may be of those who are gone. In gossip runs those are doubted as soon as their connections end.
   */
  connected: () => readonly string[]
}

export function createMembership(
  self: string,
  state: Pick<SharedState, 'members'>,
  { staleness, isRobust, isExact, connected }: MembershipOptions,
): Membership {
  const doubted = new Map<string, string>()
  const acquaintances = new Map<string, Acquaintance>()
  const others = (): Member[] => state.members().filter(({ peer }) => peer !== self)
  const isTrusted = (member: Member): boolean => {
    const mark = doubted.get(member.peer)
    if (mark === undefined) return true
    if (mark === progressMark(member)) return false
    doubted.delete(member.peer)
    return true
  }
  const withStatus = (...wanted: string[]): Member[] =>
    others().filter((member) => wanted.includes(member.record.status) && isTrusted(member))
  // Who has begun to merge is waiting for the others, whatever became of its last round. A record may be late and still
  // say `waiting`: two peers that left each other out for that would end with different sets.
  const isMerger = (member: Member): boolean =>
    member.record.status === 'merging' ||
    (['waiting', 'training', 'silent'].includes(member.record.status) && isTrusted(member))
  const active = (): Member[] => withStatus('training', 'merging')
  const there = (): Member[] => {
    const members = active()
    if (!isExact) return members
    const peers = new Set(connected())
    const reached = members.filter(({ peer }) => peers.has(peer))
    return reached.length > 0 ? reached : members
  }

  return {
    others,
    trainers: (outerStep, reach = RECORD_LAG) =>
      withStatus('waiting', 'training', 'silent', 'merging').filter(
        ({ record }) => Math.abs(record.outerStep - outerStep) <= reach,
      ),
    mergers: () =>
      others()
        .filter(isMerger)
        .map(({ peer }) => peer),
    lag(outerStep) {
      const steps = there().map(({ record }) => record.outerStep)
      return steps.length === 0 ? 0 : lowerMedian(steps) - outerStep
    },
    front(outerStep) {
      const needsTwo = isRobust && active().length >= ROBUST_OTHERS
      const enough = needsTwo ? ROBUST_FRONT : 1
      return frontOf(there(), outerStep, { staleness, enough, share: isExact ? 0 : FRONT_SHARE })
    },
    noteInStep(outerStep, ownTokens, peers) {
      for (const { peer, record } of active()) {
        const isNear = Math.abs(record.outerStep - outerStep) <= staleness + 1
        if (!isNear || peers?.includes(peer) === false) continue
        setLast(acquaintances, peer, { theirTokens: record.tokens, ownTokens })
      }
    },
    workSince: (members, ownTokens) =>
      workSince(acquaintances, members, ownTokens, active().length + 1),
    doubt(peer) {
      const member = others().find((other) => other.peer === peer)
      if (member === undefined) return
      doubted.set(peer, progressMark(member))
      forgetFirst(doubted, LIMITS.runPeers)
    },
    trust: (peer) => void doubted.delete(peer),
  }
}

function frontOf(
  others: readonly Member[],
  outerStep: number,
  { staleness, enough, share }: { staleness: number; enough: number; share: number },
): Member[] {
  const present = others.toSorted((a, b) => b.record.outerStep - a.record.outerStep)
  const first = Math.max(Math.ceil(share * present.length), enough) - 1
  const isNear = ({ record }: Member): boolean =>
    Math.abs(record.outerStep - outerStep) <= RECORD_LAG
  const leadsNobody = first > 0 && !present.some(isNear)
  for (const { record } of present.slice(first)) {
    const from = record.outerStep
    if (from <= outerStep + staleness + 1 && !leadsNobody) break
    const front = present.filter(
      (member) =>
        member.record.outerStep >= from && member.record.outerStep <= from + staleness + 1,
    )
    if (front.length >= enough) return front
  }
  return []
}

function workSince(
  acquaintances: ReadonlyMap<string, Acquaintance>,
  members: readonly Member[],
  ownTokens: number,
  swarm: number,
): WorkApart {
  let own = 0
  let theirs = 0
  let met = 0
  for (const { peer, record } of members) {
    const known = acquaintances.get(peer)
    if (known === undefined) continue
    own += Math.max(0, ownTokens - known.ownTokens)
    theirs += Math.max(0, record.tokens - known.theirTokens)
    met++
  }
  if (theirs === 0) return { tokens: 0, share: null }
  const part = members.length / Math.max(members.length, swarm)
  return { tokens: own / met, share: Math.min(1, own / (part * theirs + (1 - part) * own)) }
}

/** Sets a peer's entry, at the end of the order: of more than a run has, those not met for longest are forgotten first. */
export function setLast<T>(map: Map<string, T>, peer: string, value: T): void {
  map.delete(peer)
  map.set(peer, value)
  forgetFirst(map, LIMITS.runPeers)
}

/** Deletes what was put in first until `size` entries are left: a Map keeps the order of insertion. */
function forgetFirst(map: Map<string, unknown>, size: number): void {
  for (const key of map.keys()) {
    if (map.size <= size) return
    map.delete(key)
  }
}

/** It changes when the member moves on. */
export function progressMark({ record }: Member): string {
  return `${record.status}:${record.outerStep}`
}
