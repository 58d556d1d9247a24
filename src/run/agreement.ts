/**
 * Which contributions all members of an all-reduce round combine: a pure function of what each has collected.
 *
 * A peer may die after it gave its contribution, or its list of those it has, to some members but not to all. All who
 * are left must leave it out, whatever each of them has seen of it. So the set is one in which everybody has everybody:
 * as long as somebody in it lacks somebody else in it, the peer goes that is part of most such gaps; of two in one gap
 * the one that is lacked, since the other could not combine it anyway.
 */

/** What a peer has collected, itself included; undefined when it did not say. */
export type CollectedSets = ReadonlyMap<string, readonly string[] | undefined>

/**
 * The agreed peers, ordered. `sets` holds an entry for every peer whose contribution was collected here, this one
 * included. All who know the same of one another come to the same set, whatever else they know of peers that are gone.
 */
export function agreedPeers(sets: CollectedSets): string[] {
  const agreed = new Set(sets.keys())
  for (;;) {
    const [worst] = gapsOf(sets, agreed).sort(
      (a, b) => b.gaps - a.gaps || b.lacked - a.lacked || (a.peer < b.peer ? 1 : -1),
    )
    if (worst === undefined) return [...agreed].sort()
    agreed.delete(worst.peer)
  }
}

/** One peer alone may tell of peers that do not exist. */
const WITNESSES_MIN = 2

/**
 * Peers that this one lacks, though they were in the round: most of the others that told have collected them. Had they
 * died before, the others would lack them too, or find out that they are gone when they ask them for their set.
 */
export function lackedPeers(sets: CollectedSets, self: string): string[] {
  const told = [...sets].flatMap(([peer, set]) => (peer === self || !set ? [] : [set]))
  const isWitnessed = (peer: string): boolean => {
    const witnesses = told.filter((set) => set.includes(peer)).length
    return witnesses >= WITNESSES_MIN && 2 * witnesses > told.length
  }
  return [...new Set(told.flat())].filter((peer) => !sets.has(peer) && isWitnessed(peer)).sort()
}

interface Gaps {
  peer: string
  /** How often it lacks another or is lacked. */
  gaps: number
  lacked: number
}

/** The peers within `agreed` that are part of gaps. */
function gapsOf(sets: CollectedSets, agreed: ReadonlySet<string>): Gaps[] {
  const found = new Map<string, Gaps>()
  const count = (peer: string, lacked: number): void => {
    const { gaps, lacked: before } = found.get(peer) ?? { gaps: 0, lacked: 0 }
    found.set(peer, { peer, gaps: gaps + 1, lacked: before + lacked })
  }
  for (const peer of agreed) {
    const collected = sets.get(peer)
    if (collected === undefined) continue
    for (const other of agreed) {
      if (other === peer || collected.includes(other)) continue
      count(peer, 0)
      count(other, 1)
    }
  }
  return [...found.values()]
}
