/** Who was there when: a bar per member over time, as this node has seen it. */
import { html, setAttributes, svg } from './dom.js'
import { duration, shortPeer } from './format.js'

/** @import { RunHistory } from '../../src/run/history.ts' */

const ROW = 22
const ROWS_MAX = 30
const LEFT = 92
const RIGHT = 12
const AXIS = 22

/** @typedef {{ peer: string, name: string, spans: [from: number, to: number][] }} Row */
/** @typedef {Pick<RunHistory, 'members'> & { startMs: number, nowMs: number, self: string, present: readonly string[] }} Presence */

/**
 * @param {HTMLElement} container
 * @returns {(presence: Presence) => void}
 */
export function createTimeline(container) {
  const picture = svg('svg', { role: 'img' })
  const more = html('p', { class: 'note' })
  container.replaceChildren(picture, more)
  /** @type {Presence | undefined} */
  let shown
  const draw = () => {
    if (shown === undefined) return
    const presence = shown
    const width = Math.max(240, container.clientWidth)
    const all = rowsOf(presence)
    const rows = all.slice(0, ROWS_MAX)
    const height = rows.length * ROW + AXIS
    setAttributes(picture, {
      viewBox: `0 0 ${width} ${height}`,
      height,
      'aria-label': summaryOf(all, presence),
    })
    const { startMs, nowMs } = presence
    const span = Math.max(1000, nowMs - startMs)
    /** @param {number} ms */
    const place = (ms) => LEFT + ((ms - startMs) / span) * (width - LEFT - RIGHT)
    picture.replaceChildren(
      ...rows.flatMap((row, index) => bars(row, index, place)),
      ...axis(span, rows.length * ROW, width),
    )
    more.textContent = all.length > rows.length ? `and ${all.length - rows.length} more` : ''
  }
  new ResizeObserver(draw).observe(container)
  return (presence) => {
    shown = presence
    draw()
  }
}

/**
 * @param {Presence} presence
 * @returns {Row[]}
 */
function rowsOf({ members, startMs, nowMs, self, present }) {
  /** @type {Map<string, [number, number][]>} */
  const spans = new Map([[self, [[startMs, nowMs]]]])
  for (const { timeMs, peer, change } of members) {
    const known = spans.get(peer) ?? []
    const last = known.at(-1)
    const isOpen = last !== undefined && last[1] === nowMs
    if (change === 'joined' && !isOpen) known.push([Math.max(startMs, timeMs), nowMs])
    if (change === 'left' && isOpen) last[1] = timeMs
    spans.set(peer, known)
  }
  // Of a daemon that was killed the log does not tell who was gone when it came back.
  for (const [peer, known] of spans) {
    const last = known.at(-1)
    if (last !== undefined && last[1] === nowMs && !present.includes(peer) && peer !== self)
      last[1] = Math.max(last[0], nowMs - 1)
  }
  return [...spans].map(([peer, known]) => ({
    peer,
    name: peer === self ? 'this node' : shortPeer(peer),
    spans: known,
  }))
}

/**
 * @param {Row} row
 * @param {number} index
 * @param {(ms: number) => number} place
 */
function bars({ peer, name, spans }, index, place) {
  const y = index * ROW
  return [
    svg('text', { class: 'tick', x: LEFT - 8, y: y + 15, 'text-anchor': 'end' }, name),
    ...spans.map(([from, to]) =>
      svg(
        'rect',
        {
          class: 'presence',
          x: place(from),
          y: y + 4,
          width: Math.max(2, place(to) - place(from)),
          height: ROW - 8,
          rx: 3,
        },
        svg('title', {}, `${peer}: for ${duration(to - from)}`),
      ),
    ),
  ]
}

/**
 * @param {number} span
 * @param {number} y
 * @param {number} width
 */
function axis(span, y, width) {
  return [0, 0.5, 1].map((share) =>
    svg(
      'text',
      {
        class: 'tick',
        x: LEFT + share * (width - LEFT - RIGHT),
        y: y + 15,
        'text-anchor': share === 0 ? 'start' : share === 1 ? 'end' : 'middle',
      },
      share === 1 ? 'now' : `${duration((1 - share) * span)} ago`,
    ),
  )
}

/**
 * @param {readonly Row[]} rows
 * @param {Presence} presence
 */
function summaryOf(rows, { nowMs, startMs }) {
  const here = rows.filter(({ spans }) => spans.at(-1)?.[1] === nowMs).length
  return `Membership over the last ${duration(nowMs - startMs)}: ${rows.length} peers seen, ${here} here now`
}
