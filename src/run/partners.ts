/**
 * Who averages with whom: a pure function of run, outer step and membership view.
 *
 * Every peer sorts the live members by sha-256(run, outer step, peer id) and cuts the list into consecutive groups
 * (MoDeST's hash-sorted view, arXiv 2302.13837). Same view, same groups, no negotiation; a new random matching each
 * step, which nobody chooses.
 */
import { LIMITS } from '../limits.ts'
import { hashOf } from '../random.ts'
import type { Averaging } from './manifest.ts'

/** Members in the order of this step's hash. */
export function shuffledMembers(
  run: string,
  outerStep: number,
  members: readonly string[],
): string[] {
  const keyed = [...new Set(members)].map((peer) => ({ peer, key: hashOf(run, outerStep, peer) }))
  keyed.sort((a, b) => (a.key < b.key ? -1 : 1))
  return keyed.map(({ peer }) => peer)
}

/**
 * Disjoint groups of `groupSize`; a tail of one joins the group before it. `groupSize` 0 chooses by swarm size:
 * pairs below 8 peers, else 4 (`research`: contraction 1/2 against 1/4 per round, for 1 against 3 messages).
 */
export function groupsOf(
  run: string,
  outerStep: number,
  members: readonly string[],
  groupSize: number,
): string[][] {
  const order = shuffledMembers(run, outerStep, members)
  const size = groupSize > 0 ? groupSize : order.length < 8 ? 2 : 4
  const groups: string[][] = []
  for (let start = 0; start < order.length; start += size)
    groups.push(order.slice(start, start + size))
  const tail = groups.at(-1)
  if (groups.length > 1 && tail?.length === 1) groups.at(-2)?.push(...(groups.pop() ?? []))
  return groups
}

export interface Partners {
  /** The other members of the own group, ordered by peer id. */
  group: string[]
  /** Whom to ask in the place of those of the group that give nothing: the members that follow in the shuffled order. */
  candidates: string[]
}

export function partnersOf(
  self: string,
  run: string,
  outerStep: number,
  members: readonly string[],
  groupSize: number,
): Partners {
  const everyone = [...members, self]
  const own =
    groupsOf(run, outerStep, everyone, groupSize).find((group) => group.includes(self)) ?? []
  const order = shuffledMembers(run, outerStep, everyone)
  const position = order.indexOf(self)
  const following = [...order.slice(position + 1), ...order.slice(0, position)]
  return {
    group: own.filter((peer) => peer !== self).sort(),
    candidates: following.filter((peer) => !own.includes(peer)),
  }
}

/** Partners by the manifest's rule: the whole swarm for `diloco`, else the own group. `members` are ordered by peer id. */
export function choosePartners(
  { self, run, averaging }: { self: string; run: string; averaging: Averaging },
  outerStep: number,
  members: readonly string[],
): Partners {
  if (averaging.rule === 'diloco') {
    return { group: members.slice(0, LIMITS.groupPeers - 1), candidates: [] }
  }
  return partnersOf(self, run, outerStep, members, averaging.groupSize)
}
