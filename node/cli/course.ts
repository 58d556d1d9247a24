/** The course of a run as lines for people: from its history, and event by event from its log. */
import type { LoggedEvent } from '../../src/run/event-log.ts'
import type { RunHistory } from '../../src/run/history.ts'
import { bytes, decimal, duration, integer, shortPeer } from './format.ts'
import { plot } from './plot.ts'

const PLOT = { width: 60, height: 6 }

/** A run's history as far as it was asked for, which grows. */
export interface Course {
  /** Number of the newest event in it. */
  readonly newest: number
  add(more: RunHistory): void
  lines(): string[]
}

export function createCourse(): Course {
  const losses = new Map<number, number>()
  let newest = 0
  return {
    get newest() {
      return newest
    },
    add(more) {
      // Nothing new is told as number 0.
      newest = Math.max(newest, more.newest)
      // A peer that goes back to where the others are does its later steps anew.
      const first = more.steps[0]?.outerStep ?? Infinity
      for (const outerStep of losses.keys()) if (outerStep > first) losses.delete(outerStep)
      for (const { outerStep, loss } of more.steps) losses.set(outerStep, loss)
    },
    lines: () => courseLines(losses),
  }
}

function courseLines(losses: ReadonlyMap<number, number>): string[] {
  if (losses.size < 2) return []
  const steps = [...losses.keys()].sort((a, b) => a - b)
  const curve = steps.map((step) => losses.get(step) ?? 0)
  return ['', `training loss, outer steps ${steps[0]} to ${steps.at(-1)}`, ...plot(curve, PLOT)]
}

/** One line per event: when, and what. */
export function eventLine({ timeMs, event }: LoggedEvent): string {
  // The Swedish form of a date is that of ISO 8601, in local time.
  return `${new Date(timeMs).toLocaleString('sv')}  ${eventText(event)}`
}

function eventText(event: LoggedEvent['event']): string {
  switch (event.type) {
    case 'run_status':
      return `${event.status}, after ${event.outerStep} outer steps`
    case 'inner_progress':
      return `inner step ${event.innerStep}  loss ${decimal(event.loss)}`
    case 'outer_step':
      return outerStepText(event)
    case 'validation':
      return `validation loss ${decimal(event.loss)} at outer step ${event.outerStep}`
    case 'checkpoint': {
      const { outerStep, cid, final } = event.checkpoint
      return `${final ? 'final checkpoint' : 'checkpoint'} of outer step ${outerStep}: ${cid}`
    }
    case 'member':
      return `${shortPeer(event.peer)} has ${event.change}`
    case 'run_failed':
      break
  }
  return `failed: ${event.message} (${event.code})`
}

function outerStepText(event: Extract<LoggedEvent['event'], { type: 'outer_step' }>): string {
  const { outcome, partners, durationMs, bytesSent, bytesReceived, reasons } = event.round
  const who = partners.length === 0 ? '' : ` with ${partners.map(shortPeer).join(' ')}`
  const why = reasons.length === 0 ? '' : ` (${reasons.join('; ')})`
  return [
    `outer step ${event.outerStep}`,
    `loss ${decimal(event.loss)}`,
    `distance ${decimal(event.consensusDistance)}`,
    `${integer(event.tokens)} tokens`,
    `${integer(event.tokensPerSecond)} tokens/s` +
      (event.throughput === undefined ? '' : ` of ${integer(event.throughput.together)}`),
    `sent ${bytes(bytesSent)}`,
    `received ${bytes(bytesReceived)}`,
    `${outcome}${who} in ${duration(durationMs)}${why}`,
  ].join('  ')
}
