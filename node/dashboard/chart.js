/** A curve chart. Pointer and arrow keys read out values; what the keys find is also said to screen readers. */
import { html, setAttributes, setText, svg } from './dom.js'
import { linearScale, logScale, spanScale } from './scale.js'

/** @import { Scale } from './scale.js' */

/** @typedef {readonly [x: number, y: number]} Point */
/** @typedef {{ name: string, points: readonly Point[] }} Series */

/**
 * @typedef {object} ChartOptions
 * @property {string} title
 * @property {(value: number) => string} format of values
 * @property {boolean} [log] whether small values matter as much as large ones
 */

const HEIGHT = 190
const MARGIN = { left: 58, right: 14, top: 10, bottom: 24 }
const TICKS = 4
/** A label on the x axis takes so many pixels. */
const LABEL_WIDTH = 70

/**
 * @param {HTMLElement} figure
 * @param {ChartOptions} options
 * @returns {(series: readonly Series[]) => void} draws these
 */
export function createChart(figure, { title, format, log = false }) {
  const readout = html('output', { 'aria-live': 'polite' })
  const legend = html('span', { class: 'chart-legend' })
  const picture = svg('svg', { tabindex: 0, role: 'img', height: HEIGHT })
  figure.replaceChildren(html('figcaption', {}, html('h3', {}, title), legend, readout), picture)
  /** @type {readonly Series[]} */
  let shown = []
  /** @type {number | undefined} */
  let cursor
  const draw = () => {
    const width = Math.max(240, figure.clientWidth - 2)
    const plot = plotOf(shown, width, log)
    setAttributes(picture, { viewBox: `0 0 ${width} ${HEIGHT}`, 'aria-label': summary() })
    legend.replaceChildren(
      ...shown.map(({ name }, i) => html('span', { class: `key series-${i}` }, name)),
    )
    picture.replaceChildren(...(plot === undefined ? [nothing(width)] : axes(plot, width, format)))
    if (plot === undefined) return
    picture.append(...curves(shown, plot), ...marks(shown, plot, cursor))
  }
  const summary = () => {
    const facts = shown.flatMap(({ name, points }) => {
      const last = points.at(-1)
      return last === undefined ? [] : [`${name} ${format(last[1])} at outer step ${last[0]}`]
    })
    return facts.length === 0 ? `${title}: nothing yet` : `${title}: ${facts.join(', ')}`
  }
  /** @param {number | undefined} x */
  const pointAt = (x) => {
    cursor = x
    const facts = x === undefined ? [] : shown.flatMap((series) => factOf(series, x, format))
    setText(readout, facts.length === 0 ? '' : `step ${x}: ${facts.join(', ')}`)
    draw()
  }
  listen(picture, () => ({ xs: allX(shown), cursor }), pointAt)
  new ResizeObserver(draw).observe(figure)
  return (series) => {
    shown = series.filter(({ points }) => points.length > 0)
    draw()
  }
}

/**
 * @param {Series} series
 * @param {number} x
 * @param {(value: number) => string} format
 */
function factOf({ name, points }, x, format) {
  const found = points.find(([at]) => at === x)
  return found === undefined ? [] : [`${name} ${format(found[1])}`]
}

/**
 * @param {SVGSVGElement} picture
 * @param {() => { xs: readonly number[], cursor: number | undefined }} state
 * @param {(x: number | undefined) => void} pointAt
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
    pointAt(xs[Math.max(0, Math.min(xs.length - 1, move[1]))])
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
 * @param {readonly Series[]} series
 * @param {Plot} plot
 */
function curves(series, { x, y }) {
  return series.map(({ points }, index) => {
    const places = points.map(
      ([at, value]) => `${x.place(at).toFixed(1)},${y.place(value).toFixed(1)}`,
    )
    const [only] = points
    // One point makes no line.
    return points.length === 1 && only !== undefined
      ? svg('circle', {
          class: `dot series-${index}`,
          cx: x.place(only[0]),
          cy: y.place(only[1]),
          r: 3,
        })
      : svg('polyline', { class: `curve series-${index}`, points: places.join(' ') })
  })
}

/**
 * @param {readonly Series[]} series
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
  const dots = series.flatMap(({ points }, index) => {
    const found = points.find(([here]) => here === cursor)
    return found === undefined
      ? []
      : [svg('circle', { class: `dot series-${index}`, cx: at, cy: y.place(found[1]), r: 4 })]
  })
  return [line, ...dots]
}
