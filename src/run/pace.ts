/**
 * How long a peer trains for an outer step, and how long it waits for its partners: by the swarm's own pace.
 *
 * The aim is that all finish together. A peer that is slower than the swarm does fewer inner steps and contributes what
 * it has (its weight is its tokens), one that is faster does up to twice as many (DyLU, arXiv 2401.09135). Waiting for
 * a silent partner costs little: a share of an outer step, or twice what partners have needed lately.
 */
import type { RoundLimits } from './manifest.ts'

/** What a peer sees of its swarm when an outer step begins. Without itself. */
export interface SwarmPace {
  /** Tokens per second of the inner steps; 0 where it is not known yet. */
  ownRate: number
  otherRates: readonly number[]
  /** Outer steps that this peer is behind the swarm's median; negative when it is ahead. */
  lag: number
}

export interface InnerPlan {
  /** Inner steps to do at most. */
  steps: number
  /** After this long what is done is enough; infinite in a swarm of one. */
  budgetMs: number
  /** When the others are expected to have finished; 0 where nothing is known of them. */
  targetMs: number
}

/** Allowances are never shorter than this share of the longest round: so little says nothing about a peer. */
const FLOOR_SHARE = 1 / 5
/** Late by more than this share of the swarm's outer step is late. */
const ALLOWANCE_SHARE = 1 / 4
/** Twice the inner steps at most: more would let the replicas drift apart. */
const STEPS_MAX_FACTOR = 2
/** Rounds remembered. */
const RECENT = 8
/** A transfer may take so many times longer than those before. */
const TRANSFER_FACTOR = 4

/** The inner steps of one outer step, `tokens` of them if all `innerSteps` are done. */
export function planInnerSteps(
  { ownRate, otherRates, lag }: SwarmPace,
  { innerSteps, tokens, limits }: { innerSteps: number; tokens: number; limits: RoundLimits },
): InnerPlan {
  const rates = otherRates.filter((rate) => rate > 0)
  if (rates.length === 0) return { steps: innerSteps, budgetMs: Infinity, targetMs: 0 }
  const durationMs = (rate: number): number => (1000 * tokens) / rate
  // Of two the faster: the slower can do less, the faster could only wait.
  const targetMs = lowerMedian([...rates, ...(ownRate > 0 ? [ownRate] : [])].map(durationMs))
  const ownMs = ownRate > 0 ? durationMs(ownRate) : targetMs
  const allowanceMs = Math.max(ALLOWANCE_SHARE * targetMs, leastPatienceMs(limits))
  const isSlow = ownMs > targetMs + allowanceMs
  const isFast = ownMs < targetMs - allowanceMs
  const fitting = Math.floor((innerSteps * targetMs) / ownMs)
  // Half of what partners wait: the other half is for what follows the inner steps.
  const unhurriedMs = targetMs + (isSlow ? 0 : allowanceMs / 2)
  return {
    steps: isFast ? Math.min(STEPS_MAX_FACTOR * innerSteps, fitting) : innerSteps,
    budgetMs: Math.max(leastPatienceMs(limits), unhurriedMs / (1 + Math.max(0, lag))),
    targetMs,
  }
}

export interface RoundTimes {
  /** From the start of the round to each partner's header. */
  waitedMs: readonly number[]
  /** From a header to its last chunk, or to when that was given up. */
  transferredMs: readonly number[]
}

/** What one run remembers of its rounds. */
export interface Pace {
  /**
   * How long to wait for partners that may not be ready. `earlyMs`: how much sooner than the swarm this peer has
   * finished. A peer that is ahead of the swarm gives it the time to come up; one that knows nothing of it waits as
   * long as a round may take.
   */
  patienceMs(plan: InnerPlan, earlyMs: number, lag: number): number
  /** How long a contribution may take once its header is here. */
  transferMs(): number
  note(times: RoundTimes): void
}

export function createPace(limits: RoundLimits): Pace {
  const waits: number[] = []
  const transfers: number[] = []
  return {
    patienceMs({ targetMs }, earlyMs, lag) {
      if (targetMs === 0) return limits.roundTimeoutMs
      const allowanceMs = ALLOWANCE_SHARE * targetMs
      const usualMs = Math.max(2 * lowerMedian(waits), allowanceMs, leastPatienceMs(limits))
      const aheadMs = Math.max(0, -lag) * (targetMs + allowanceMs)
      return Math.min(limits.roundTimeoutMs, Math.max(0, earlyMs) + aheadMs + usualMs)
    },
    transferMs: () =>
      transfers.length === 0
        ? limits.roundTimeoutMs
        : Math.min(
            limits.roundTimeoutMs,
            Math.max(TRANSFER_FACTOR * lowerMedian(transfers), leastPatienceMs(limits)),
          ),
    note({ waitedMs, transferredMs }) {
      remember(waits, waitedMs)
      remember(transfers, transferredMs)
    },
  }
}

function remember(recent: number[], times: readonly number[]): void {
  recent.push(...times)
  recent.splice(0, Math.max(0, recent.length - RECENT))
}

/** So long at least a partner is waited for that says nothing. */
export function leastPatienceMs({ roundTimeoutMs }: RoundLimits): number {
  return FLOOR_SHARE * roundTimeoutMs
}

/** 0 of nothing. */
export function lowerMedian(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.floor((sorted.length - 1) / 2)] ?? 0
}
