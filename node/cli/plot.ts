/** A curve as rows of block characters. */

const BLOCKS = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
const EIGHTHS = BLOCKS.length - 1

export interface PlotSize {
  /** Characters across, without the labels. */
  width: number
  /** Rows. */
  height: number
}

/**
 * Columns as high as the values, the largest filling all rows and the smallest one eighth of a row; the first and the
 * last row are labelled with these two. More values than columns are averaged, fewer are widened. Nothing for no values.
 */
export function plot(values: readonly number[], { width, height }: PlotSize): string[] {
  if (values.length === 0) return []
  const columns = fitted(values, width)
  const [low, high] = [Math.min(...columns), Math.max(...columns)]
  const span = high - low
  const heights = columns.map((value) =>
    span === 0 ? 1 : 1 + Math.round(((value - low) / span) * (height * EIGHTHS - 1)),
  )
  const labels = [high, low].map((value) => value.toFixed(3))
  const labelWidth = Math.max(...labels.map((label) => label.length))
  return Array.from({ length: height }, (_, row) => {
    const below = (height - 1 - row) * EIGHTHS
    const bars = heights.map((eighths) => BLOCKS[Math.max(0, Math.min(EIGHTHS, eighths - below))])
    const label = row === 0 ? labels[0] : row === height - 1 ? labels[1] : ''
    return `${(label ?? '').padStart(labelWidth)} ${bars.join('')}`.trimEnd()
  })
}

function fitted(values: readonly number[], width: number): number[] {
  if (values.length <= width) {
    const repeats = Math.max(1, Math.floor(width / values.length))
    return values.flatMap((value) => Array.from({ length: Math.min(repeats, 4) }, () => value))
  }
  return Array.from({ length: width }, (_, column) => {
    const from = Math.floor((column * values.length) / width)
    const to = Math.floor(((column + 1) * values.length) / width)
    return values.slice(from, to).reduce((sum, value) => sum + value, 0) / (to - from)
  })
}
