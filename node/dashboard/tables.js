/** What is shown as tables: members, connections, checkpoints, the board. */
import { html, setTable } from './dom.js'
import { bytes, decimal, duration, integer, shortPeer } from './format.js'

/** @import { Link } from '../../src/net/network.ts' */
/** @import { RunView } from '../../src/run/view.ts' */

const MEMBER_COLUMNS = [
  'Peer',
  'Status',
  'Step',
  'Loss',
  'Tokens/s',
  'Link',
  'Averaged with',
  'Sent',
  'Received',
]
/** A swarm may have thousands, and the table is looked through every second. */
const MEMBERS_MAX = 200

/**
 * @param {HTMLTableElement} table
 * @param {RunView} view
 * @param {readonly Link[]} links
 */
export function showMembers(table, { members }, links) {
  const paths = new Map(links.map(({ peer, direct }) => [peer, direct ? 'direct' : 'relayed']))
  const shown = members.slice(0, MEMBERS_MAX)
  const left = members.length - shown.length
  const rest = left === 0 ? [] : [[`and ${left} more`, ...MEMBER_COLUMNS.slice(1).map(() => '')]]
  setTable(
    table,
    MEMBER_COLUMNS,
    [
      ...shown.map((member) => [
        html('span', { title: member.peer, class: 'mono' }, nameOf(member)),
        member.status,
        String(member.outerStep),
        decimal(member.loss),
        integer(member.tokensPerSecond),
        member.self ? '' : (paths.get(member.peer) ?? 'none'),
        member.partners.map(shortPeer).join(' '),
        bytes(member.bytesSent),
        bytes(member.bytesReceived),
      ]),
      ...rest,
    ],
    'nobody yet',
  )
}

/** @param {RunView['members'][number]} member */
function nameOf({ peer, self }) {
  return self ? `${shortPeer(peer)} (this node)` : shortPeer(peer)
}

/**
 * @param {HTMLTableElement} table
 * @param {readonly Link[]} links
 */
export function showLinks(table, links) {
  setTable(
    table,
    [
      'Peer',
      'Path',
      'Transport',
      'Direction',
      'Round trip',
      'Up',
      'Down',
      'Sent',
      'Received',
      'Age',
    ],
    links.map((link) => [
      html('span', { title: `${link.peer} ${link.address}`, class: 'mono' }, shortPeer(link.peer)),
      link.direct ? 'direct' : 'relayed',
      link.transport,
      link.direction,
      link.rttMs === null ? '-' : duration(link.rttMs),
      `${bytes(link.sentBytesPerSecond)}/s`,
      `${bytes(link.receivedBytesPerSecond)}/s`,
      bytes(link.bytesSent),
      bytes(link.bytesReceived),
      duration(link.ageMs),
    ]),
    'no connections: they are tried in the background',
  )
}

/**
 * Drawn anew only when there is another checkpoint: its buttons would lose the focus.
 * @param {HTMLElement} container
 * @param {RunView} view
 * @param {(cid: string, file: string) => void} download
 */
export function showCheckpoints(container, { id, checkpoints }, download) {
  const signature = JSON.stringify([id, checkpoints])
  if (container.dataset['signature'] === signature) return
  container.dataset['signature'] = signature
  const table = html('table', {}, html('caption', {}, 'Checkpoints that this node holds'))
  setTable(
    table,
    ['Step', 'Kind', 'Size', 'CID', 'Download'],
    checkpoints
      .toReversed()
      .map((checkpoint) => [
        String(checkpoint.outerStep),
        checkpoint.final ? 'final merge' : 'outer state',
        bytes(checkpoint.bytes),
        html('span', { title: checkpoint.cid, class: 'mono' }, shortPeer(checkpoint.cid)),
        downloadButtons(checkpoint, download),
      ]),
    'none yet',
  )
  container.replaceChildren(table)
}

const FILES = { 'model.safetensors': 'weights', 'config.json': 'config' }

/**
 * @param {RunView['checkpoints'][number]} checkpoint
 * @param {(cid: string, file: string) => void} download
 */
function downloadButtons({ cid, outerStep }, download) {
  const buttons = Object.entries(FILES).map(([file, name]) => {
    const label = `Download ${file} of step ${outerStep}`
    const button = html('button', { type: 'button', 'aria-label': label }, name)
    button.addEventListener('click', () => download(cid, file))
    return button
  })
  return html('span', { class: 'buttons' }, ...buttons)
}

/**
 * @param {HTMLElement} container
 * @param {RunView} view
 */
export function showBoard(container, { board }) {
  const signature = JSON.stringify(board)
  if (container.dataset['signature'] === signature) return
  container.dataset['signature'] = signature
  const table = html('table', {}, html('caption', {}, "Entries of the run's admins"))
  setTable(
    table,
    ['Key', 'Value'],
    Object.entries(board).map(([key, value]) => [key, String(value)]),
    'empty',
  )
  container.replaceChildren(table)
}
