/** What a swarm under churn shows, event by event, and whether it is good enough. */
import type { RunEvent } from '../../src/run/view.ts'

/** No two averaged rounds of the swarm may be further apart. */
const STALL_MAX_MS = 10_000
/** The validation loss has to fall by so much, in nats. */
const LOSS_FALL_MIN = 0.2

export interface Measures {
  /** A node is asked to join the run, or is started again after a kill. */
  begins(peer: string, how: 'joining' | 'recovering', nowMs: number): void
  sees(peer: string, event: RunEvent, nowMs: number): void
  killed(peer: string, nowMs: number): void
  /** The process ended by itself. */
  ended(peer: string, code: number | null, stderr: string): void
  /** Peers that have averaged since they began. */
  contributors(): string[]
  /** Outer steps, newest first, whose checkpoints all of `peers` have told. */
  commonSteps(peers: readonly string[]): { outerStep: number; isEqual: boolean }[]
  summary(): Summary
}

export interface Summary {
  joined: number
  restarted: number
  killed: number
  averagedRounds: number
  /** Rounds that ended without another's contribution: this peer trained alone, or took over what it had missed. */
  loneRounds: number
  outerStep: number
  /** The longest time without an averaged round anywhere in the swarm. */
  longestGapMs: number
  medianJoinMs: number | null
  medianRecoveryMs: number | null
  /** From a kill until every survivor has averaged again. */
  medianNextRoundMs: number | null
  /** Outer steps whose round several peers have averaged, and those after which all of these held the same. */
  comparedSteps: number
  equalSteps: number
  lossFirst: number | null
  lossLast: number | null
  faults: string[]
}

export function createMeasures(): Measures {
  const lastAveraged = new Map<string, number>()
  const begun = new Map<string, { how: 'joining' | 'recovering'; sinceMs: number }>()
  const contributing = new Set<string>()
  const checkpoints = new Map<number, Map<string, string>>()
  const averaged = new Map<number, Map<string, string>>()
  const times = { joining: [] as number[], recovering: [] as number[], nextRound: [] as number[] }
  const counts = { joining: 0, recovering: 0, killed: 0, averaged: 0, lone: 0 }
  const losses: number[] = []
  const faults: string[] = []
  let awaited: { sinceMs: number; peers: Set<string> }[] = []
  let lastAveragedMs: number | undefined
  let longestGapMs = 0

  function noteAveraged(peer: string, nowMs: number): void {
    counts.averaged++
    if (lastAveragedMs !== undefined) longestGapMs = Math.max(longestGapMs, nowMs - lastAveragedMs)
    lastAveragedMs = nowMs
    const beginning = begun.get(peer)
    begun.delete(peer)
    if (beginning !== undefined) times[beginning.how].push(nowMs - beginning.sinceMs)
    contributing.add(peer)
    stopAwaiting(peer, (sinceMs) => times.nextRound.push(nowMs - sinceMs))
  }

  /** `peer` need not be waited for any more. */
  function stopAwaiting(peer: string, onLast: (sinceMs: number) => void): void {
    awaited = awaited.filter(({ sinceMs, peers }) => {
      if (!peers.delete(peer) || peers.size > 0) return true
      onLast(sinceMs)
      return false
    })
  }

  return {
    begins(peer, how, nowMs) {
      counts[how]++
      begun.set(peer, { how, sinceMs: nowMs })
    },
    sees(peer, event, nowMs) {
      if (event.type === 'outer_step') {
        if (event.round.outcome === 'averaged') {
          noteAveraged(peer, nowMs)
          lastAveraged.set(peer, event.outerStep)
        } else counts.lone++
      }
      if (event.type === 'validation') losses.push(event.loss)
      if (event.type === 'run_failed')
        faults.push(`${peer}: the run failed: ${event.code}: ${event.message}`)
      if (event.type !== 'checkpoint') return
      const { outerStep, cid } = event.checkpoint
      note(checkpoints, outerStep, peer, cid)
      if (lastAveraged.get(peer) === outerStep) note(averaged, outerStep, peer, cid)
    },
    killed(peer, nowMs) {
      counts.killed++
      begun.delete(peer)
      contributing.delete(peer)
      stopAwaiting(peer, () => {})
      if (contributing.size > 1) awaited.push({ sinceMs: nowMs, peers: new Set(contributing) })
    },
    ended(peer, code, stderr) {
      faults.push(`${peer} ended by itself with exit code ${code}: ${stderr.slice(-500)}`)
    },
    contributors: () => [...contributing],
    commonSteps: (peers) =>
      [...checkpoints]
        .filter(([, told]) => peers.every((peer) => told.has(peer)))
        .map(([outerStep, told]) => ({
          outerStep,
          isEqual: new Set(peers.map((peer) => told.get(peer))).size === 1,
        }))
        .sort((a, b) => b.outerStep - a.outerStep),
    summary() {
      const told = [...averaged.values()].filter(({ size }) => size > 1)
      const lossFirst = mean(losses.slice(0, 4))
      const lossLast = mean(losses.slice(-8))
      const found = [...faults]
      if (longestGapMs > STALL_MAX_MS)
        found.push(`the swarm stood still for ${Math.round(longestGapMs)} ms`)
      if (lossFirst === null || lossLast === null || lossLast > lossFirst - LOSS_FALL_MIN)
        found.push(`the loss has not fallen: ${lossFirst} at first, ${lossLast} at last`)
      return {
        joined: counts.joining,
        restarted: counts.recovering,
        killed: counts.killed,
        averagedRounds: counts.averaged,
        loneRounds: counts.lone,
        outerStep: Math.max(0, ...checkpoints.keys()),
        longestGapMs: Math.round(longestGapMs),
        medianJoinMs: median(times.joining),
        medianRecoveryMs: median(times.recovering),
        medianNextRoundMs: median(times.nextRound),
        comparedSteps: told.length,
        equalSteps: told.filter((cids) => new Set(cids.values()).size === 1).length,
        lossFirst,
        lossLast,
        faults: found,
      }
    },
  }
}

function note(
  steps: Map<number, Map<string, string>>,
  outerStep: number,
  peer: string,
  cid: string,
): void {
  steps.set(outerStep, (steps.get(outerStep) ?? new Map<string, string>()).set(peer, cid))
}

function mean(values: readonly number[]): number | null {
  if (values.length === 0) return null
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

function median(values: readonly number[]): number | null {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted[Math.floor(sorted.length / 2)]
  return middle === undefined ? null : Math.round(middle)
}
