/**
 * A gossip peer's defence against contributions that are wrong on purpose: local tests, no message and no vote.
 *
 * In this order, on each contribution of the group:
 * 1. Reputation: who was rejected again and again is left out for a while.
 * 2. Direction: a pseudo-gradient that points against the own one and the own momentum by far is rejected. Honest
 *    cosines lie around 0 where peers have different data, so this stops only the gross.
 * 3. Probe: half a step towards the contribution must not hurt on batches of the held-out data that nobody else knows:
 *    a secret of this peer draws them.
 * 4. Clipping of what is left: the difference to the own pseudo-gradient and to the own parameters, to what was usual in
 *    the last rounds (ClippedGossip, arXiv 2202.01545, with radii that adapt).
 *
 * A bias that stays below all that slows training down; it cannot make it diverge. Many identities of one attacker are
 * beyond any test of this kind.
 */
import type { Clock } from '../clock.ts'
import { clipFactor } from '../optim/combine.ts'
import type { OuterState } from '../optim/outer.ts'
import { hashOf } from '../random.ts'
import { dot, squaredDistance, sumOfSquares } from '../tensor/vector.ts'
import { decodeSlice, plannedSlices, type Contribution } from './contribution.ts'
import { lowerMedian } from './pace.ts'
import { createReputations, type Reputation } from './reputation.ts'
import type { Trainer } from './trainer.ts'

const COSINE_MIN = -0.3
/** Loss over that of the own local parameters, in nats per token. */
const PROBE_TOLERANCE = 0.05
const PROBE_BATCHES = 2
/** Accepted contributions remembered, and the fewest that tell what is usual. */
const USUAL = 16
const USUAL_MIN = 3
const PSEUDO_GRADIENT_RADIUS_MAX = 1.5
const PARAMETERS_RADIUS_FACTOR = 2
const PARAMETERS_RADIUS_MAX = 0.25

export type Verdict = 'accepted' | 'reputation' | 'direction' | 'probe'

/** How much of the differences to the own vectors counts. */
export interface ClipFactors {
  pseudoGradient: number
  parameters: number
}

export interface Judgement {
  /** What to combine, the own contribution among it. */
  accepted: Contribution[]
  factors: ReadonlyMap<string, ClipFactors>
  rejected: { peer: string; verdict: Exclude<Verdict, 'accepted'> }[]
}

export interface JudgedRound {
  /** Before the round. */
  outer: OuterState
  outerStep: number
  /** Ordered by peer id, the own one among them. */
  contributions: readonly Contribution[]
  /** Without it there is no probe: who trains a model that only its script knows has the other tests. */
  evaluate: Trainer['evaluate'] | undefined
}

export interface Defence {
  judge(round: JudgedRound, signal: AbortSignal): Promise<Judgement>
  /** What is to be kept over a restart. */
  reputations(): Reputation[]
  /** Takes over what was kept, but for peers judged since. */
  restore(reputations: readonly Reputation[]): void
}

export interface DefenceOptions {
  self: string
  /** Known to this peer alone: what its probes are drawn from. */
  secret: string
  clock: Clock
}

/** For one run; it lives as long as the run is open, whatever interrupts training. */
export function createDefence(options: DefenceOptions): Defence {
  const usual: Usual = { pseudoGradients: [], parameters: [] }
  const reputations = createReputations()
  return {
    async judge(round, signal) {
      const { contributions, outerStep, outer, evaluate } = round
      const own = contributions.find(({ peer }) => peer === options.self)
      const judgement: Judgement = { accepted: [], factors: new Map(), rejected: [] }
      if (own === undefined) return { ...judgement, accepted: [...contributions] }
      const factors = new Map<string, ClipFactors>()
      let ownLoss: number | undefined
      const probe = async (other: Contribution): Promise<boolean> => {
        if (evaluate === undefined) return true
        const sample = hashOf('probe', options.secret, outerStep)
        const lossOf = async (probed: Probe): Promise<number> => {
          const parameters = await probedParameters(probed, options.clock)
          return (await evaluate({ parameters, batches: PROBE_BATCHES, sample, signal })).loss
        }
        ownLoss ??= await lossOf({ outer, own })
        const loss = await lossOf({ outer, own, other })
        // What is not a number is no good either.
        return loss <= ownLoss + PROBE_TOLERANCE
      }
      for (const contribution of contributions) {
        const { peer } = contribution
        if (contribution === own) {
          judgement.accepted.push(own)
          continue
        }
        const geometry = await measure({ outer, own, other: contribution }, options.clock)
        const verdict = reputations.isIgnored(peer, outerStep)
          ? 'reputation'
          : cosineOf(geometry) <= COSINE_MIN
            ? 'direction'
            : (await probe(contribution))
              ? 'accepted'
              : 'probe'
        if (verdict !== 'reputation') reputations.note(peer, verdict === 'accepted', outerStep)
        if (verdict === 'accepted') {
          judgement.accepted.push(contribution)
          factors.set(peer, clip(geometry, usual))
        } else judgement.rejected.push({ peer, verdict })
      }
      return { ...judgement, factors }
    },
    reputations: () => reputations.tarnished(),
    restore: (stored) => reputations.restore(stored),
  }
}

/** Squares and products over whole vectors; `buffer` is the own outer momentum. */
interface Geometry {
  own: number
  other: number
  buffer: number
  ownOther: number
  ownBuffer: number
  otherBuffer: number
  /** Between the pseudo-gradients, and between the parameters. */
  pseudoGradients: number
  parameters: number
  ownParameters: number
}

async function measure(
  { outer, own, other }: { outer: OuterState; own: Contribution; other: Contribution },
  clock: Clock,
): Promise<Geometry> {
  const sums: Geometry = {
    own: 0,
    other: 0,
    buffer: 0,
    ownOther: 0,
    ownBuffer: 0,
    otherBuffer: 0,
    pseudoGradients: 0,
    parameters: 0,
    ownParameters: 0,
  }
  for await (const [from, to] of plannedSlices(own.plan, clock)) {
    const mine = decodeSlice(own, 'pseudoGradient', from)
    const theirs = decodeSlice(other, 'pseudoGradient', from)
    const buffer = outer.momentum.subarray(from, to)
    const parameters = outer.parameters.subarray(from, to)
    sums.own += sumOfSquares(mine)
    sums.other += sumOfSquares(theirs)
    sums.buffer += sumOfSquares(buffer)
    sums.ownOther += dot(mine, theirs)
    sums.ownBuffer += dot(mine, buffer)
    sums.otherBuffer += dot(theirs, buffer)
    sums.pseudoGradients += squaredDistance(mine, theirs)
    sums.parameters += squaredDistance(parameters, decodeSlice(other, 'parameters', from))
    sums.ownParameters += sumOfSquares(parameters)
  }
  return sums
}

/** Between the other's pseudo-gradient and the sum of the own one and the own momentum, both of length 1. */
function cosineOf({ own, other, buffer, ownOther, ownBuffer, otherBuffer }: Geometry): number {
  const share = (product: number, square: number): number =>
    square === 0 ? 0 : product / Math.sqrt(square)
  const product = share(ownOther, own) + share(otherBuffer, buffer)
  const parts = (own === 0 ? 0 : 1) + (buffer === 0 ? 0 : 1)
  const reference = parts + 2 * share(share(ownBuffer, own), buffer)
  return share(share(product, other), reference)
}

/** Distances of what was accepted lately. */
interface Usual {
  pseudoGradients: number[]
  parameters: number[]
}

/** Clips to what was usual before, and remembers this. */
function clip(geometry: Geometry, usual: Usual): ClipFactors {
  const distance = Math.sqrt(geometry.pseudoGradients)
  const apart = Math.sqrt(geometry.parameters)
  const own = Math.sqrt(geometry.own)
  const isKnown = usual.pseudoGradients.length >= USUAL_MIN
  const radius = isKnown ? lowerMedian(usual.pseudoGradients) : own
  // 0 as long as all hold the parameters that the run began with.
  const usualApart = isKnown ? lowerMedian(usual.parameters) : 0
  const parametersRadius = usualApart > 0 ? PARAMETERS_RADIUS_FACTOR * usualApart : own
  const parametersMax = PARAMETERS_RADIUS_MAX * Math.sqrt(geometry.ownParameters)
  remember(usual.pseudoGradients, distance)
  remember(usual.parameters, apart)
  return {
    pseudoGradient: clipFactor(distance, Math.min(radius, PSEUDO_GRADIENT_RADIUS_MAX * own)),
    parameters: clipFactor(apart, Math.min(parametersRadius, parametersMax)),
  }
}

function remember(recent: number[], value: number): void {
  recent.push(value)
  recent.splice(0, Math.max(0, recent.length - USUAL))
}

interface Probe {
  outer: OuterState
  own: Contribution
  /** Absent for the own local parameters. */
  other?: Contribution
}

/** The own local parameters, or those after half a step towards another. */
async function probedParameters({ outer, own, other }: Probe, clock: Clock): Promise<Float32Array> {
  const parameters = outer.parameters.slice()
  for await (const [from, to] of plannedSlices(own.plan, clock)) {
    const mine = decodeSlice(own, 'pseudoGradient', from)
    const theirs = other && decodeSlice(other, 'pseudoGradient', from)
    const there = other && decodeSlice(other, 'parameters', from)
    for (let i = from; i < to; i++) {
      const at = i - from
      const here = parameters[i]!
      parameters[i] =
        theirs === undefined || there === undefined
          ? here - mine[at]!
          : here + (there[at]! - here) / 2 - (mine[at]! + theirs[at]!) / 2
    }
  }
  return parameters
}
