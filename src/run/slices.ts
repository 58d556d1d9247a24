import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import { slicesOf, type SliceRange } from '../tensor/vector.ts'

/** The slices of a vector, with a turn of the event loop after each whole one: the node answers its peers meanwhile. */
export async function* slicesInTurns(
  elements: number,
  clock: Clock,
  start = 0,
): AsyncGenerator<SliceRange> {
  for (const slice of slicesOf(elements, LIMITS.sliceElements, start)) {
    yield slice
    if (slice[1] - slice[0] === LIMITS.sliceElements) await clock.sleep(0)
  }
}
