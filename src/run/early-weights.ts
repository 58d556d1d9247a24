/**
 * Outer parameters do not depend on the inner steps: in runs that overlap exchange with training they are sent at an
 * outer step's start (as NoLoCo remarks, arXiv 2506.10911), so that only the pseudo-gradient, a third of the bytes, is
 * sent at its end.
 */
import { raceSignal, withDeadline, type Clock } from '../clock.ts'
import { asFault } from '../errors.ts'
import {
  contributionPlan,
  encodeContribution,
  joinContributions,
  type Contribution,
  type RoundKey,
} from './contribution.ts'
import type { Pulled, PullOptions } from './contribution-pull.ts'
import type { Averaging } from './manifest.ts'
import type { RoundExchange } from './round.ts'
import type { ReadyRun } from './run-context.ts'

/** The part of a contribution that is sent at an outer step's start. */
export function weightsOf(
  weights: {
    averaging: Averaging
    peer: string
    run: string
    outerStep: number
    schemaHash: string
    parameters: Float32Array
  },
  clock: Clock,
): Promise<Contribution> {
  const { averaging, parameters, outerStep, peer, run, schemaHash } = weights
  return encodeContribution(
    {
      peer,
      run,
      schemaHash,
      key: { outerStep, phase: 'weights' },
      weight: 1,
      plan: contributionPlan(averaging, 'weights', [0, parameters.length]),
      vectors: { parameters },
    },
    clock,
  )
}

export interface EarlyWeights {
  readonly own: Contribution
  /** Of a peer; pulled now unless that was begun before. Then `transferMs` more is waited for it. */
  pull(peer: string, options: PullOptions): Promise<Pulled>
}

/** Offers the own outer parameters and begins to pull those of `partners`, until the signal fires. */
export async function sendWeights(
  run: ReadyRun,
  partners: readonly string[],
  signal: AbortSignal,
): Promise<EarlyWeights> {
  const { id, self, manifest, exchange, clock, outer } = run
  const { averaging, schemaHash, limits } = manifest
  const { outerStep } = run.progress
  const key: RoundKey = { outerStep, phase: 'weights' }
  // Encoded before training moves on to a round, which changes them.
  const names = { averaging, peer: self, run: id, outerStep, schemaHash }
  const own = await weightsOf({ ...names, parameters: outer.parameters }, clock)
  const { plan } = own
  exchange.offer(key, own)
  const { roundTimeoutMs: patienceMs } = limits
  const options = { plan, schemaHash, signal, waits: true, patienceMs, transferMs: patienceMs }
  const pulls = new Map(partners.map((peer) => [peer, exchange.pull(peer, key, options)]))
  return {
    own,
    async pull(peer, late) {
      const pull = pulls.get(peer)
      const early = pull && (await endOf(pull, late, clock))
      const isLate = early?.kind === 'refused' && early.transferredMs !== null
      if (early?.kind === 'contribution' || isLate) return early
      return exchange.pull(peer, key, { ...late, plan })
    },
  }
}

/** What has been begun comes to, or a refusal when it takes too long. */
async function endOf(
  pull: Promise<Pulled>,
  { transferMs, signal }: Pick<PullOptions, 'transferMs' | 'signal'>,
  clock: Clock,
): Promise<Pulled> {
  try {
    return await withDeadline(clock, transferMs, 'receiving weights', signal, (limited) =>
      raceSignal(pull, limited),
    )
  } catch (thrown) {
    const { message } = asFault(thrown)
    const times = { waitedMs: null, transferredMs: transferMs }
    return { kind: 'refused', refusal: 'unreachable', message, outerStep: null, ...times }
  }
}

/** A round's exchange in which contributions are joined with the weights sent before. `own`: what is offered. */
export function withWeights(
  exchange: RoundExchange,
  own: Contribution,
  weights: EarlyWeights,
): RoundExchange {
  return {
    ...exchange,
    offer: (key) => exchange.offer(key, own),
    async pull(peer, key, options) {
      const pulled = await exchange.pull(peer, key, { ...options, plan: own.plan })
      if (pulled.kind === 'refused') return pulled
      const early = await weights.pull(peer, options)
      if (early.kind === 'refused') return { ...early, waitedMs: pulled.waitedMs }
      const contribution = joinContributions(pulled.contribution, early.contribution)
      return { ...pulled, contribution }
    },
  }
}
