/** The course of a run, asked for bit by bit: what is there already is not sent again. */

/** @import { RunHistory } from '../../src/run/history.ts' */
/** @import { Api } from './api.js' */

/** Outer steps that are kept here; beyond, every second one is let go. */
const STEPS_MAX = 4_000

/**
 * @param {Api} api
 * @param {string} run
 */
export function createHistory(api, run) {
  /** @type {RunHistory} */
  const all = { newest: 0, steps: [], validations: [], members: [] }
  const fetchMore = async () => {
    /** @type {RunHistory} */
    const more = await api.get(`/v1/runs/${run}/history?after=${all.newest}`)
    all.newest = Math.max(all.newest, more.newest)
    all.steps = thinned(joined(all.steps, more.steps))
    all.validations = thinned(joined(all.validations, more.validations))
    all.members = [...all.members, ...more.members].slice(-STEPS_MAX)
  }
  /** @type {Promise<void> | undefined} */
  let underWay
  return {
    all,
    /** One at a time: two that ask from the same place on would add the same twice. */
    async refresh() {
      underWay ??= fetchMore().finally(() => (underWay = undefined))
      await underWay
    },
  }
}

/**
 * A step that happened twice, as after a crash, is told last as it was.
 * @template {{ outerStep: number }} T
 * @param {readonly T[]} known
 * @param {readonly T[]} more
 */
function joined(known, more) {
  const first = more[0]?.outerStep ?? Infinity
  return [...known.filter(({ outerStep }) => outerStep < first), ...more]
}

/**
 * @template T
 * @param {readonly T[]} values
 */
function thinned(values) {
  if (values.length <= STEPS_MAX) return [...values]
  return values.filter((_, index) => (values.length - 1 - index) % 2 === 0)
}
