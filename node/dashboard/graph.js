/** The swarm as a graph: members on a circle, this node's links, and who averaged with whom in the last round. */
import { setAttributes, svg } from './dom.js'
import { decimal, shortPeer } from './format.js'

/** @import { Link } from '../../src/net/network.ts' */
/** @import { RunView } from '../../src/run/view.ts' */

const HEIGHT = 330
const WIDTH_MAX = 600
/** Below that names stand alone: their second lines have no place. */
const WIDTH_OF_TEXTS = 480
const REACH = { x: 165, y: 110 }
/** What names take beside the circle, alone and with a second line. */
const NAME_WIDTH = 108
const TEXT_WIDTH = 142
/** What peers of other runs take around the circle. */
const RIM_WIDTH = 70
/** More members than that are drawn smaller and without names; the table has them. */
const NAMED_MAX = 24
/** Outer steps behind the first within which a member's last round counts as of now. */
const RECENT_STEPS = 2
/** Connected peers of other runs, on the rim. */
const OTHERS_MAX = 32

/** @typedef {{ x: number, y: number }} Place */
/** @typedef {{ width: number, center: Place, radius: Place }} Frame */

/**
 * @param {HTMLElement} container
 * @returns {(view: RunView, links: readonly Link[]) => void}
 */
export function createGraph(container) {
  const picture = svg('svg', { role: 'img' })
  container.replaceChildren(picture)
  /** @type {[RunView, readonly Link[]] | undefined} */
  let shown
  let drawn = ''
  const draw = () => {
    if (shown === undefined) return
    const frame = frameOf(container.clientWidth, shown[0].members.length <= NAMED_MAX)
    const graph = graphOf(...shown, frame)
    const signature = JSON.stringify(graph)
    // Untouched when nothing has changed, so that its animation goes on.
    if (signature === drawn) return
    drawn = signature
    const viewBox = `0 0 ${frame.width} ${HEIGHT}`
    setAttributes(picture, { viewBox, 'aria-label': summaryOf(graph) })
    picture.replaceChildren(...edgesOf(graph), ...strangersOf(graph), ...membersOf(graph))
  }
  new ResizeObserver(draw).observe(container)
  return (view, links) => {
    shown = [view, links]
    draw()
  }
}

/**
 * As wide as there is place, so that texts are no smaller on a phone.
 * @param {number} clientWidth 0 of what is not on the page
 * @param {boolean} isNamed
 * @returns {Frame}
 */
function frameOf(clientWidth, isNamed) {
  const width = Math.max(280, Math.min(WIDTH_MAX, clientWidth || WIDTH_MAX))
  const nameWidth = width < WIDTH_OF_TEXTS ? NAME_WIDTH : TEXT_WIDTH
  return {
    width,
    center: { x: width / 2, y: HEIGHT / 2 },
    radius: { x: Math.min(REACH.x, width / 2 - (isNamed ? nameWidth : RIM_WIDTH)), y: REACH.y },
  }
}

/** @typedef {ReturnType<typeof graphOf>} Graph */

/**
 * @param {RunView} view
 * @param {readonly Link[]} links
 * @param {Frame} frame
 */
function graphOf(view, links, frame) {
  const hasTexts = frame.width >= WIDTH_OF_TEXTS
  const sorted = view.members.toSorted((a, b) => (a.peer < b.peer ? -1 : 1))
  const members = sorted.map((member, index) => ({
    peer: member.peer,
    self: member.self,
    status: member.status,
    text: `step ${member.outerStep}, loss ${decimal(member.loss, 2)}`,
    at: placeOf(index, sorted.length, 1, frame),
  }))
  const known = new Set(members.map(({ peer }) => peer))
  const strangers = links.filter(({ peer }) => !known.has(peer)).slice(0, OTHERS_MAX)
  return {
    frame,
    hasTexts,
    members,
    others: strangers.map(({ peer, direct }, index) => ({
      peer,
      direct,
      at: placeOf(index + 0.5, strangers.length, 1.32, frame),
    })),
    links: links
      .filter(({ peer }) => known.has(peer))
      .map(({ peer, direct }) => ({ peer, direct })),
    averaged: averagedPairs(view).filter(([a, b]) => known.has(a) && known.has(b)),
  }
}

/**
 * @param {number} index
 * @param {number} count
 * @param {number} reach
 * @param {Frame} frame
 * @returns {Place}
 */
function placeOf(index, count, reach, { center, radius }) {
  const angle = (2 * Math.PI * index) / Math.max(1, count) - Math.PI / 2
  const [x, y] = [Math.cos(angle) * radius.x * reach, Math.sin(angle) * radius.y * reach]
  return count === 1 && reach === 1
    ? center
    : { x: Math.round(center.x + x), y: Math.round(center.y + y) }
}

/**
 * Pairs of members of which one names the other as a partner, each once. What a member says that is far behind was long
 * ago.
 * @param {RunView} view
 * @returns {(readonly [string, string])[]}
 */
function averagedPairs({ members }) {
  const front = Math.max(0, ...members.map(({ outerStep }) => outerStep))
  const recent = members.filter(({ outerStep }) => outerStep >= front - RECENT_STEPS)
  const pairs = recent.flatMap(({ peer, partners }) =>
    partners.map((partner) => [peer, partner].sort().join(' ')),
  )
  return [...new Set(pairs)].map((pair) => {
    const [a = '', b = ''] = pair.split(' ')
    return /** @type {const} */ ([a, b])
  })
}

/** @param {Graph} graph */
function summaryOf({ members, links, averaged }) {
  const direct = links.filter((link) => link.direct).length
  const pairs = averaged.map(([a, b]) => `${shortPeer(a)} with ${shortPeer(b)}`)
  return [
    `Swarm of ${members.length} ${members.length === 1 ? 'member' : 'members'}`,
    `this node has ${direct} direct and ${links.length - direct} relayed links to them`,
    pairs.length === 0 ? 'nobody has averaged yet' : `averaged: ${pairs.join(', ')}`,
  ].join('; ')
}

/** @param {Graph} graph */
function edgesOf({ members, others, links, averaged }) {
  const places = new Map([...members, ...others].map(({ peer, at }) => [peer, at]))
  const self = members.find((member) => member.self)?.at
  /** @type {SVGElement[]} */
  const drawn = []
  for (const { peer, direct } of [...others, ...links]) {
    const to = places.get(peer)
    if (self === undefined || to === undefined) continue
    const path = direct ? 'direct' : 'relayed'
    drawn.push(svg('line', { class: `link ${path}`, x1: self.x, y1: self.y, x2: to.x, y2: to.y }))
  }
  for (const [a, b] of averaged) {
    const [from, to] = [places.get(a), places.get(b)]
    if (from !== undefined && to !== undefined)
      drawn.push(svg('path', { class: 'averaging', d: bowed(from, to) }))
  }
  return drawn
}

/**
 * Beside the straight line, where a link may lie.
 * @param {Place} from
 * @param {Place} to
 */
function bowed(from, to) {
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 }
  const [dx, dy] = [to.x - from.x, to.y - from.y]
  return `M${from.x} ${from.y}Q${middle.x - dy * 0.12} ${middle.y + dx * 0.12} ${to.x} ${to.y}`
}

/** @param {Graph} graph */
function strangersOf({ others }) {
  return others.map(({ peer, at: { x, y } }) =>
    svg(
      'circle',
      { class: 'stranger', cx: x, cy: y, r: 4 },
      svg('title', {}, `${peer}: of no run here`),
    ),
  )
}

/** @param {Graph} graph */
function membersOf({ members, frame, hasTexts }) {
  const named = members.length <= NAMED_MAX
  const radius = named ? 13 : 7
  return members.map(({ peer, self, status, text, at: { x, y } }) => {
    const title = svg('title', {}, `${peer}: ${status}, ${text}`)
    const circle = svg('circle', { cx: x, cy: y, r: self ? radius + 3 : radius })
    const lines = [self ? 'this node' : shortPeer(peer), ...(hasTexts ? [text] : [])]
    const names = named ? namesOf(lines, { x, y }, radius, frame) : []
    return svg('g', { class: `member ${status}${self ? ' self' : ''}` }, title, circle, ...names)
  })
}

/**
 * Lines on the outer side of a member, where no link goes.
 * @param {readonly string[]} lines
 * @param {Place} at
 * @param {number} radius
 * @param {Frame} frame
 */
function namesOf(lines, { x, y }, radius, { center, radius: reach }) {
  const side = Math.abs(x - center.x) < reach.x / 4 ? 0 : Math.sign(x - center.x)
  const place = {
    x: x + side * (radius + 8),
    'text-anchor': side === 0 ? 'middle' : side > 0 ? 'start' : 'end',
  }
  const above = y - radius + 7 - 14 * lines.length
  const first = side !== 0 ? y - 3 : y >= center.y ? y + radius + 18 : above
  return lines.map((line, index) =>
    svg('text', { ...place, y: first + 14 * index, class: index === 0 ? 'name' : 'tick' }, line),
  )
}
