/**
 * The members a peer counts on in a round: those of the shared state that train, minus those it has reason to doubt.
 *
 * A member that did not answer in a round is left out until its record moves on: one dead peer costs its partners one
 * deadline, not one per round until its record expires.
 */
import type { Member, SharedState } from '../state/shared-state.ts'

/** Outer steps a record may lag behind the own step before its owner is taken for gone or resyncing. */
const RECORD_LAG = 8

export interface Membership {
  /** Peer ids for the round of `outerStep`, own excluded, ordered. */
  trainers(outerStep: number): string[]
  /** Peer ids for the final merge, own excluded, ordered. */
  mergers(): string[]
  /** Everyone but this peer, whatever the status. */
  others(): Member[]
  /** Leaves `peer` out until its record changes. */
  doubt(peer: string): void
}

export function createMembership(self: string, state: SharedState): Membership {
  const doubted = new Map<string, string>()
  const others = (): Member[] => state.members().filter(({ peer }) => peer !== self)
  const trusted = (member: Member): boolean => {
    const mark = doubted.get(member.peer)
    if (mark === undefined) return true
    if (mark === progressMark(member)) return false
    doubted.delete(member.peer)
    return true
  }
  const peersOf = (members: Member[]): string[] => members.map(({ peer }) => peer).sort()
  return {
    others,
    trainers: (outerStep) =>
      peersOf(
        others().filter(
          (member) =>
            ['waiting', 'training', 'merging'].includes(member.record.status) &&
            member.record.outerStep >= outerStep - RECORD_LAG &&
            trusted(member),
        ),
      ),
    mergers: () =>
      peersOf(
        others().filter(
          (member) => ['training', 'merging'].includes(member.record.status) && trusted(member),
        ),
      ),
    doubt(peer) {
      const member = others().find((other) => other.peer === peer)
      if (member !== undefined) doubted.set(peer, progressMark(member))
    },
  }
}

function progressMark({ record }: Member): string {
  return `${record.status}:${record.outerStep}`
}
