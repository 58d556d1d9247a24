/**
 * When the exchange of an outer step overlaps with training, and which part of the parameters it moves.
 *
 * Overlap: at the end of an outer step the local parameters are noted, the exchange begins, and training goes on at
 * once. When the exchange has ended, its result is added as a correction: theta <- theta + (phi' - theta_noted), so
 * that the steps done meanwhile are kept and count in the next pseudo-gradient. Of 20 inner steps between two
 * exchanges, 2 of overlap cost 1 % of the loss and 5 cost 4 %: `npm run bench -- convergence --only b9`.
 *
 * Fragments (Streaming DiLoCo, arXiv 2501.18512): in all-reduce runs each outer step exchanges one fragment of the
 * parameters, in turn, the last one all of them. Between its exchanges a fragment is trained on where it is.
 */
import type { Clock } from '../clock.ts'
import type { Averaging } from './manifest.ts'
import type { SliceRange } from '../tensor/vector.ts'
import { slicesInTurns } from './slices.ts'

export interface OverlapPlan {
  /** Inner steps of the next outer step after which the result is applied, if it is there. */
  steps: number
  /** After so many the round is over, whatever has come. */
  latest: number
}

interface Rounds {
  averaging: Averaging
  innerSteps: number
}

/** The most inner steps of overlap: a quarter of those between two exchanges of a parameter, and less than a round. */
export function overlapMax({ averaging, innerSteps }: Rounds): number {
  const quarter = Math.floor((innerSteps * (averaging.fragments ?? 1)) / 4)
  return Math.max(0, Math.min(innerSteps - 1, quarter))
}

/** `done` inner steps were done in this outer step: a peer that is slower than the swarm overlaps with fewer. */
export function overlapPlan({ averaging, innerSteps }: Rounds, done: number): OverlapPlan {
  const { overlapSteps = 0, fragments = 1 } = averaging
  const share = Math.min(1, done / innerSteps)
  const steps = overlapSteps === 0 ? 0 : Math.max(1, Math.round(overlapSteps * share))
  const half = Math.min(innerSteps - 1, Math.floor((innerSteps * fragments) / 2))
  return { steps, latest: Math.max(steps, Math.floor(half * share)) }
}

/** Whether weights are sent at an outer step's start, and only pseudo-gradients at its end. */
export function sendsWeightsEarly({ rule, overlapSteps = 0 }: Averaging): boolean {
  return overlapSteps > 0 && (rule === 'gossip-diloco' || rule === 'noloco')
}

/** Fragments begin where a block of any dense codec may. */
const FRAGMENT_ALIGNMENT = 128

/** The elements that the round of an outer step exchanges. */
export function exchangedRange(
  { averaging: { fragments = 1 }, outerSteps }: { averaging: Averaging; outerSteps: number },
  outerStep: number,
  elements: number,
): SliceRange {
  if (fragments === 1 || outerStep >= outerSteps - 1) return [0, elements]
  const fragment = outerStep % fragments
  const boundary = (index: number): number =>
    index === fragments
      ? elements
      : Math.floor((index * elements) / fragments / FRAGMENT_ALIGNMENT) * FRAGMENT_ALIGNMENT
  return [boundary(fragment), boundary(fragment + 1)]
}

/** Where the inner steps of the next outer step go on, when that is not at the outer parameters. */
export interface LocalState extends InnerWork {
  parameters: Float32Array
}

/** Inner steps that are done of an outer step. */
export interface InnerWork {
  steps: number
  tokens: number
  /** Mean training loss over the steps. */
  loss: number
  /** 0 after a restart. */
  elapsedMs: number
}

export const NO_WORK: InnerWork = { steps: 0, tokens: 0, loss: 0, elapsedMs: 0 }

export function addWork(a: InnerWork, b: InnerWork): InnerWork {
  const steps = a.steps + b.steps
  return {
    steps,
    tokens: a.tokens + b.tokens,
    loss: steps === 0 ? 0 : (a.loss * a.steps + b.loss * b.steps) / steps,
    elapsedMs: a.elapsedMs + b.elapsedMs,
  }
}

export interface Correction {
  /** Local parameters at the end of the outer step … */
  noted: Float32Array
  /** … and now, after the inner steps done since; the same vector when there are none. Moved in place. */
  local: Float32Array
  /** Outer parameters after the round. */
  outer: Float32Array
  /** What the round has exchanged. */
  range: SliceRange
}

/** Takes the result of a round over into the local parameters; what was not exchanged stays. */
export async function applyCorrection(
  { noted, local, outer, range: [start, end] }: Correction,
  clock: Clock,
): Promise<void> {
  const isMoved = local !== noted
  for await (const [from, to] of slicesInTurns(end, clock, start)) {
    if (!isMoved) local.set(outer.subarray(from, to), from)
    else for (let i = from; i < to; i++) local[i] = local[i]! + Math.fround(outer[i]! - noted[i]!)
  }
}
