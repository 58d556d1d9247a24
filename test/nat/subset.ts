/** Some pairs of the matrix, chosen by a seed: few, but each way of getting through at least once. */
import { seededRandom } from '../../src/random.ts'
import { allPairs } from './matrix.ts'
import type { Pair } from './matrix.ts'

/** One for each way: dialled, dialled back, TCP punched, UDP punched, found by the birthday search, relayed. */
const CORNERS: readonly Pair[] = [
  { from: 'portrestricted', to: 'portrestricted' },
  { from: 'symmetric', to: 'restricted' },
  { from: 'portrestricted', to: 'symmetric' },
  { from: 'webonly', to: 'symmetric' },
]
const DRAWN = 2

export function subsetOf(seed: string): Pair[] {
  const random = seededRandom('nat', seed)
  const types = new Set(CORNERS.flatMap(({ from, to }) => [from, to]))
  // Of the same NATs: each type more is a daemon more, or two.
  const others = allPairs().filter(
    (pair) =>
      types.has(pair.from) &&
      types.has(pair.to) &&
      !CORNERS.some(({ from, to }) => from === pair.from && to === pair.to),
  )
  const drawn = Array.from({ length: DRAWN }, () => others.splice(random.integer(others.length), 1))
  return [...CORNERS, ...drawn.flat()]
}
