/** From values to places on the screen, and where to put ticks. */

/**
 * @typedef {object} Scale
 * @property {(value: number) => number} place
 * @property {readonly number[]} ticks
 */

/**
 * Round numbers between `low` and `high`, about `count` of them.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @returns {number[]}
 */
export function niceTicks(low, high, count) {
  const span = high - low
  if (!(span > 0)) return [low]
  const power = 10 ** Math.floor(Math.log10(span / count))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => span / s <= count) ?? span
  const first = Math.ceil(low / step)
  const last = Math.floor(high / step + 1e-9)
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step)
}

/**
 * @param {readonly number[]} values
 * @param {readonly [from: number, to: number]} range on the screen
 * @param {number} count of ticks, about
 * @returns {Scale}
 */
export function linearScale(values, [from, to], count) {
  const low = Math.min(...values)
  const high = Math.max(...values)
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1
  const [bottom, top] = [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin]
  return {
    place: (value) => from + ((value - bottom) / (top - bottom)) * (to - from),
    ticks: niceTicks(bottom, top, count),
  }
}

/**
 * Where x runs: from the first value to the last, without a margin.
 * @param {number} first
 * @param {number} last
 * @param {readonly [from: number, to: number]} range
 * @param {number} count
 * @returns {Scale}
 */
export function spanScale(first, last, [from, to], count) {
  const span = last - first || 1
  return {
    place: (value) => from + ((value - first) / span) * (to - from),
    ticks: niceTicks(first, last, count),
  }
}

/** Of so many decades, or fewer, 1 alone would be too few ticks. */
const FINE_DECADES = 3

/**
 * Logarithmic, for values above 0 that reach over more than a decade.
 * @param {readonly number[]} values
 * @param {readonly [from: number, to: number]} range
 * @returns {Scale | undefined} undefined when a linear scale tells more
 */
export function logScale(values, [from, to]) {
  const low = Math.min(...values)
  const high = Math.max(...values)
  if (!(low > 0) || high / low < 10) return undefined
  const [first, last] = [Math.log10(low), Math.log10(high)]
  const margin = (last - first) * 0.05
  const [bottom, top] = [first - margin, last + margin]
  const place = (/** @type {number} */ value) =>
    from + ((Math.log10(value) - bottom) / (top - bottom)) * (to - from)
  const decades = Array.from(
    { length: Math.floor(top) - Math.floor(bottom) + 1 },
    (_, index) => 10 ** (Math.floor(bottom) + index),
  )
  // Over few decades their thirds, too: 1, 2, 5.
  const steps = decades.length <= FINE_DECADES ? [1, 2, 5] : [1]
  const ticks = decades.flatMap((decade) => steps.map((step) => step * decade))
  return { place, ticks: ticks.filter((tick) => tick >= 10 ** bottom && tick <= 10 ** top) }
}
