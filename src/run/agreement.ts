/**
 * Which contributions all members of an all-reduce round combine: a pure function of what each has collected.
 *
 * A peer may die after it gave its contribution, or its list of those it has, to some members but not to all. All who
 * are left must leave it out, whatever each of them has seen of it. So the set is one in which everybody has everybody:
 * as long as somebody in it lacks somebody else in it, the peer goes that is part of most such gaps.
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
    const gaps = gapsOf(sets, agreed)
    const worst = [...gaps].reduce<[string, number] | undefined>(
      (most, [peer, count]) =>
        most === undefined || count > most[1] || (count === most[1] && peer > most[0])
          ? [peer, count]
          : most,
      undefined,
    )
    if (worst === undefined) return [...agreed].sort()
    agreed.delete(worst[0])
  }
}

/** How many gaps within `agreed` each peer is part of: it lacks another, or another lacks it. */
function gapsOf(sets: CollectedSets, agreed: ReadonlySet<string>): Map<string, number> {
  const gaps = new Map<string, number>()
  const count = (peer: string): void => void gaps.set(peer, (gaps.get(peer) ?? 0) + 1)
  for (const peer of agreed) {
    const collected = sets.get(peer)
    if (collected === undefined) continue
    for (const other of agreed) {
      if (other === peer || collected.includes(other)) continue
      count(peer)
      count(other)
    }
  }
  return gaps
}
