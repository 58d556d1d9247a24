/** A curve chart. Pointer and arrow keys read out values; what the keys find is also said to screen readers. */
import { html, setAttributes, setText, svg } from './dom.js'
import { linearScale, logScale, spanScale } from './scale.js'

/** @import { Scale } from './scale.js' */

/** @typedef {readonly [x: number, y: number]} Point */
/**
 * Series of a group are many of a kind: they look alike, and are told of together.
 * @typedef {{ name: string, group?: string, points: readonly Point[] }} Series
 */
/** @typedef {Series & { looks: string }} Drawn */

/**
 * @typedef {object} ChartOptions
 * @property {string} title
 * @property {(value: number) => string} format of values
 * @property {boolean} [log] whether small values matter as much as large ones
 */

const HEIGHT = 190
const MARGIN = { left: 64, right: 14, top: 10, bottom: 24 }
const TICKS = 4
/** A label on the x axis takes so many pixels. */
const LABEL_WIDTH = 70

/**
 * @param {HTMLElement} figure
 * @param {ChartOptions} options
 * @returns {(series: readonly Series[]) => void} draws these
 */
export function createChart(figure, { title, format, log = false }) {
  const readout = html('output', { 'aria-live': 'off' })
  const legend = html('span', { class: 'chart-legend' })
  const picture = svg('svg', { tabindex: 0, role: 'img', height: HEIGHT })
  figure.replaceChildren(html('figcaption', {}, html('h3', {}, title), legend, readout), picture)
  /** @type {readonly Drawn[]} */
  let shown = []
  /** @type {number | undefined} */
  let cursor
  const draw = () => {
    const width = Math.max(240, figure.clientWidth - 2)
    const plot = plotOf(shown, width, log)
    setAttributes(picture, { viewBox: `0 0 ${width} ${HEIGHT}`, 'aria-label': summary() })
    legend.replaceChildren(
      ...[...keysOf(shown)].map(([name, series]) => html('span', { class: `key ${series}` }, name)),
    )
    picture.replaceChildren(...(plot === undefined ? [nothing(width)] : axes(plot, width, format)))
    if (plot === undefined) return
    picture.append(...curves(shown, plot), ...marks(shown, plot, cursor))
  }
  const summary = () => {
    const groups = Map.groupBy(shown, ({ name, group }) => group ?? name).values()
    const facts = [...groups].flatMap((same) => {
      const last = Math.max(...same.flatMap(({ points }) => points.at(-1)?.[0] ?? []))
      return factsAt(same, last, format).map((fact) => `${fact} at outer step ${last}`)
    })
    return facts.length === 0 ? `${title}: nothing yet` : `${title}: ${facts.join(', ')}`
  }
  /**
   * @param {number | undefined} x
   * @param {'off' | 'polite'} live whether to say it, too: a pointer passes over many values
   */
  const pointAt = (x, live = 'off') => {
    cursor = x
    setAttributes(readout, { 'aria-live': live })
    const facts = x === undefined ? [] : factsAt(shown, x, format)
    setText(readout, facts.length === 0 ? '' : `step ${x}: ${facts.join(', ')}`)
    draw()
  }
  listen(picture, () => ({ xs: allX(shown), cursor }), pointAt)
  new ResizeObserver(draw).observe(figure)
  return (series) => {
    shown = series
      .map((each, index) => ({ ...each, looks: looksOf(each, index) }))
      .filter(({ points }) => points.length > 0)
    draw()
  }
}

/**
 * The values at `x`; of a group from the lowest to the highest.
 * @param {readonly Series[]} series
 * @param {number} x
 * @param {(value: number) => string} format
 */
function factsAt(series, x, format) {
  /** @type {Map<string, number[]>} */
  const values = new Map()
  for (const { name, group = name, points } of series) {
    const found = points.find(([at]) => at === x)
    if (found !== undefined) values.set(group, [...(values.get(group) ?? []), found[1]])
  }
  return [...values].map(([name, of]) => {
    const [low, high] = [format(Math.min(...of)), format(Math.max(...of))]
    return low === high ? `${name} ${low}` : `${name} ${low} to ${high}`
  })
}

/**
 * Names in the legend, each with the class of what it stands for.
 * @param {readonly Drawn[]} series
 */
function keysOf(series) {
  return new Map(series.map(({ name, group, looks }) => [group ?? name, looks]))
}

/**
 * By its place among all, so that a curve keeps its looks when another one begins.
 * @param {Series} series
 * @param {number} index
 */
function looksOf({ group }, index) {
  return group === undefined ? `series-${index}` : 'series-group'
}

/**
 * @param {SVGSVGElement} picture
 * @param {() => { xs: readonly number[], cursor: number | undefined }} state
 * @param {(x: number | undefined, live?: 'polite') => void} pointAt
 */
function listen(picture, state, pointAt) {
  picture.addEventListener('pointermove', (event) => {
    const { xs } = state()
    const box = picture.getBoundingClientRect()
    const first = xs.at(0) ?? 0
    const share =
      (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right)
    const x = first + share * ((xs.at(-1) ?? 0) - first)
    pointAt(nearest(xs, x))
  })
  picture.addEventListener('pointerleave', () => pointAt(undefined))
  picture.addEventListener('blur', () => pointAt(undefined))
  picture.addEventListener('keydown', (event) => {
    const { xs, cursor } = state()
    const at = cursor === undefined ? xs.length : xs.indexOf(cursor)
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1 }
    const move = Object.entries(moves).find(([key]) => key === event.key)
    if (move === undefined || xs.length === 0) return
    event.preventDefault()
    pointAt(xs[Math.max(0, Math.min(xs.length - 1, move[1]))], 'polite')
  })
}

/** @param {readonly Series[]} series */
function allX(series) {
  return [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b)
}

/**
 * @param {readonly number[]} xs
 * @param {number} x
 */
function nearest(xs, x) {
  return xs.reduce((best, at) => (Math.abs(at - x) < Math.abs(best - x) ? at : best), xs[0] ?? 0)
}

/** @typedef {{ x: Scale, y: Scale }} Plot */

/**
 * @param {readonly Series[]} series
 * @param {number} width
 * @param {boolean} log
 * @returns {Plot | undefined}
 */
function plotOf(series, width, log) {
  const xs = allX(series)
  const values = series.flatMap(({ points }) => points.map(([, y]) => y))
  const [first, last] = [xs.at(0), xs.at(-1)]
  if (first === undefined || last === undefined) return undefined
  /** @type {[number, number]} */
  const rows = [HEIGHT - MARGIN.bottom, MARGIN.top]
  const labels = Math.max(2, Math.floor((width - MARGIN.left) / LABEL_WIDTH))
  return {
    x: spanScale(first, last, [MARGIN.left, width - MARGIN.right], labels),
    y: (log ? logScale(values, rows) : undefined) ?? linearScale(values, rows, TICKS),
  }
}

/** @param {number} width */
function nothing(width) {
  return svg(
    'text',
    { x: width / 2, y: HEIGHT / 2, 'text-anchor': 'middle', class: 'tick' },
    'nothing yet',
  )
}

/**
 * @param {Plot} plot
 * @param {number} width
 * @param {(value: number) => string} format
 */
function axes({ x, y }, width, format) {
  // Small counts would be labelled the same twice.
  const ticks = y.ticks.filter((tick, i) => format(tick) !== format(y.ticks[i - 1] ?? NaN))
  const rows = ticks.flatMap((tick) => [
    svg('line', {
      class: 'grid',
      x1: MARGIN.left,
      x2: width - MARGIN.right,
      y1: y.place(tick),
      y2: y.place(tick),
    }),
    svg(
      'text',
      { class: 'tick', x: MARGIN.left - 6, y: y.place(tick) + 4, 'text-anchor': 'end' },
      format(tick),
    ),
  ])
  const columns = x.ticks
    .filter((tick) => Number.isInteger(tick))
    .map((tick) =>
      svg(
        'text',
        { class: 'tick', x: x.place(tick), y: HEIGHT - 6, 'text-anchor': 'middle' },
        String(tick),
      ),
    )
  return [...rows, ...columns]
}

/**
 * @param {readonly Drawn[]} series
 * @param {Plot} plot
 */
function curves(series, { x, y }) {
  // Those of a group lie below the others.
  const ordered = series.toSorted(
    (a, b) => Number(b.group !== undefined) - Number(a.group !== undefined),
  )
  return ordered.map(({ looks, points }) => {
    const places = points.map(
      ([at, value]) => `${x.place(at).toFixed(1)},${y.place(value).toFixed(1)}`,
    )
    const [only] = points
    // One point makes no line.
    return points.length === 1 && only !== undefined
      ? svg('circle', {
          class: `dot ${looks}`,
          cx: x.place(only[0]),
          cy: y.place(only[1]),
          r: 3,
        })
      : svg('polyline', { class: `curve ${looks}`, points: places.join(' ') })
  })
}

/**
 * @param {readonly Drawn[]} series
 * @param {Plot} plot
 * @param {number | undefined} cursor
 */
function marks(series, { x, y }, cursor) {
  if (cursor === undefined) return []
  const at = x.place(cursor)
  const line = svg('line', {
    class: 'cursor',
    x1: at,
    x2: at,
    y1: MARGIN.top,
    y2: HEIGHT - MARGIN.bottom,
  })
  const dots = series.flatMap(({ looks, points }) => {
    const found = points.find(([here]) => here === cursor)
    return found === undefined
      ? []
      : [
          svg('circle', {
            class: `dot ${looks}`,
            cx: at,
            cy: y.place(found[1]),
            r: 4,
          }),
        ]
  })
  return [line, ...dots]
}
