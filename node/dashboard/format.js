/** Quantities as text for people, in the terminal and on the page. */

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB']

/**
 * 1 234 567 as `1.23 MB`.
 * @param {number} count
 */
export function bytes(count) {
  let value = count
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit++
  }
  const digits = unit === 0 || value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2
  return `${value.toFixed(digits)} ${UNITS[unit]}`
}

/**
 * 1234567 as `1 234 567`.
 * @param {number} count
 */
export function integer(count) {
  return Math.round(count)
    .toString()
    .replaceAll(/\B(?=(\d{3})+$)/g, ' ')
}

/**
 * Losses and distances; `-` when there is none yet.
 * @param {number | null} value
 */
export function decimal(value, digits = 4) {
  return value === null ? '-' : value.toFixed(digits)
}

/** @param {number} ms */
export function duration(ms) {
  const seconds = Math.floor(ms / 1000)
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}

/**
 * Peer ids of one kind begin alike; their ends tell them apart.
 * @param {string} peer
 */
export function shortPeer(peer) {
  return peer.length <= 12 ? peer : `…${peer.slice(-8)}`
}
