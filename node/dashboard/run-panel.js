/** Everything about the run that is shown. */
import { createChart } from './chart.js'
import { byId, setPairs, setText } from './dom.js'
import { bytes, decimal, duration, integer, shortPeer } from './format.js'
import { createGraph } from './graph.js'
import { showBoard, showCheckpoints, showMembers } from './tables.js'
import { createTimeline } from './timeline.js'

/** @import { Link } from '../../src/net/network.ts' */
/** @import { HistoryStep, RunHistory } from '../../src/run/history.ts' */
/** @import { RunView } from '../../src/run/view.ts' */
/** @import { Point } from './chart.js' */

/** @typedef {{ view: RunView, history: RunHistory, links: readonly Link[], isAdmin: boolean, self: string }} Shown */

/** Other peers with a curve of their own. */
const OTHERS_MAX = 32

/** @param {(cid: string, file: string) => void} download */
export function createRunPanel(download) {
  const graph = createGraph(byId('graph', HTMLElement))
  const timeline = createTimeline(byId('timeline', HTMLElement))
  const drawCharts = createCharts()
  return (/** @type {Shown} */ { view, history, links, isAdmin, self }) => {
    showHead(view, isAdmin)
    setPairs(byId('figures', HTMLElement), figuresOf(view))
    graph(view, links)
    showMembers(byId('members', HTMLTableElement), view, links)
    drawCharts(history)
    const nowMs = Date.now()
    const startMs = history.steps[0]?.timeMs ?? nowMs
    const firstMs = Math.min(startMs, history.members[0]?.timeMs ?? nowMs)
    const present = view.members.map(({ peer }) => peer)
    timeline({ members: history.members, startMs: firstMs, nowMs, self, present })
    showCheckpoints(byId('checkpoints', HTMLElement), view, download)
    showBoard(byId('board', HTMLElement), view)
    byId('board-form', HTMLElement).hidden = !isAdmin
  }
}

/**
 * @param {RunView} view
 * @param {boolean} isAdmin
 */
function showHead(view, isAdmin) {
  setText(byId('run-name', HTMLElement), view.name)
  setText(byId('run-id', HTMLElement), view.id)
  const status = byId('run-status', HTMLElement)
  setText(status, view.status)
  status.className = `badge ${view.status}`
  const error = byId('run-error', HTMLElement)
  setText(error, view.error === null ? '' : view.error.message)
  error.hidden = view.error === null
  const pause = byId('pause', HTMLButtonElement)
  pause.hidden = !isAdmin || view.status === 'finished' || view.status === 'failed'
  setText(pause, view.board['paused'] === true ? 'Let the swarm go on' : 'Pause the swarm')
  const progress = byId('progress', HTMLProgressElement)
  progress.max = view.outerSteps
  progress.value = view.outerStep
  const inner = `inner step ${view.innerStep} of ${view.innerSteps}`
  setText(
    byId('progress-text', HTMLElement),
    `outer step ${view.outerStep} of ${view.outerSteps}${view.status === 'training' ? `, ${inner}` : ''}`,
  )
}

/**
 * @param {RunView} view
 * @returns {[string, string][]}
 */
function figuresOf(view) {
  const { rounds, round, members } = view
  const together = members.reduce((sum, { tokensPerSecond }) => sum + tokensPerSecond, 0)
  return [
    ['Loss', decimal(view.loss)],
    ['Loss at the start', decimal(view.lossStart)],
    ['Validation loss', decimal(view.validationLoss)],
    ['Consensus distance', decimal(view.consensusDistance)],
    ['Tokens/s here', integer(view.tokensPerSecond)],
    ['Tokens/s together', integer(together)],
    ['Waited for the network', view.waitShare === null ? '-' : percent(view.waitShare)],
    ['Tokens here', integer(view.tokens)],
    ['Parameters', integer(view.parameters)],
    ['Sent', bytes(view.bytesSent)],
    ['Received', bytes(view.bytesReceived)],
    ['Rounds averaged', String(rounds.averaged)],
    ['Rounds solo, stale', `${rounds.solo}, ${rounds.stale}`],
    ['Rule', view.rule],
    ['Last round', round === null ? '-' : roundText(round)],
  ]
}

/** @param {number} share */
function percent(share) {
  return `${(100 * share).toFixed(1)} %`
}

/** @param {NonNullable<RunView['round']>} round */
function roundText({ outcome, partners, durationMs, reasons }) {
  const who = partners.length === 0 ? '' : ` with ${partners.map(shortPeer).join(' ')}`
  const why = reasons.length === 0 ? '' : ` (${reasons.join('; ')})`
  return `${outcome}${who} in ${duration(durationMs)}${why}`
}

function createCharts() {
  const figure = (/** @type {string} */ name) => byId(`chart-${name}`, HTMLElement)
  const short = (/** @type {number} */ value) => String(Number(value.toPrecision(4)))
  const loss = createChart(figure('loss'), { title: 'Loss, nats per token', format: short })
  const distance = createChart(figure('distance'), {
    title: 'Consensus distance',
    format: short,
    log: true,
  })
  const throughput = createChart(figure('throughput'), {
    title: 'Tokens per second',
    format: (value) => (value < 10 ? short(value) : integer(value)),
    log: true,
  })
  const traffic = createChart(figure('bytes'), { title: 'Bytes per round', format: bytes })
  return (/** @type {RunHistory} */ { steps, validations }) => {
    const curve = (/** @type {(step: HistoryStep) => number | null} */ of) =>
      steps.flatMap((step) => pointOf(step.outerStep, of(step)))
    loss([
      { name: 'training', points: curve((step) => step.loss) },
      {
        name: 'validation',
        points: validations.map((each) => /** @type {Point} */ ([each.outerStep, each.loss])),
      },
    ])
    // Nothing is further apart than 0 before the first average.
    distance([{ name: 'distance', points: curve((step) => step.consensusDistance || null) }])
    throughput([
      { name: 'this node', points: curve((step) => step.tokensPerSecond || null) },
      { name: 'together', points: curve((step) => step.throughput?.together || null) },
      ...othersIn(steps).map((peer) => ({
        name: shortPeer(peer),
        group: 'other peers',
        points: curve((step) => step.throughput?.others[peer] || null),
      })),
    ])
    traffic([
      { name: 'sent', points: curve((step) => step.bytesSent) },
      { name: 'received', points: curve((step) => step.bytesReceived) },
    ])
  }
}

/**
 * Those that were there last: in a swarm under churn there are ever new ones.
 * @param {readonly HistoryStep[]} steps
 */
function othersIn(steps) {
  /** @type {Set<string>} */
  const found = new Set()
  for (const { throughput } of steps.toReversed()) {
    for (const peer of Object.keys(throughput?.others ?? {})) found.add(peer)
    if (found.size >= OTHERS_MAX) break
  }
  return [...found]
}

/**
 * @param {number} x
 * @param {number | null} y
 * @returns {Point[]}
 */
function pointOf(x, y) {
  return y === null ? [] : [[x, y]]
}
