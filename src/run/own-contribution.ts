/** What a peer brings to the round of an outer step: from its local parameters to an encoded contribution. */
import { ShoalError } from '../errors.ts'
import { isFiniteVector, type SliceRange } from '../tensor/vector.ts'
import { joinContributions, type Contribution } from './contribution.ts'
import { withWeights, type EarlyWeights } from './early-weights.ts'
import { contributingMoves, contributionOf, type OwnUpdate } from './outer-update.ts'
import { exchangedRange } from './overlap.ts'
import type { RoundExchange } from './round.ts'
import type { ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'

export interface OwnContribution {
  contribution: Contribution
  /** Where it is offered and those of others are pulled. */
  exchange: RoundExchange
  /** The local parameters that it was made of; overwritten in runs whose next inner steps never go on from them. */
  noted: Float32Array
  /** What of the parameters it is about. */
  range: SliceRange
  /** All-reduce runs: hash of the outer parameters it starts from. */
  base: string | null
}

/** `tokens` are behind the local parameters. `weights`: what was sent at the outer step's start. */
export async function contribute(
  run: ReadyRun,
  tokens: number,
  weights: EarlyWeights | undefined,
): Promise<OwnContribution> {
  const { progress, manifest } = run
  const { averaging } = manifest
  const { outerStep } = progress
  const base = averaging.rule === 'diloco' ? progress.parametersHash : null
  const range = exchangedRange(manifest, outerStep, run.elements)
  const noted = await run.trainer.readParameters()
  const update: OwnUpdate = {
    averaging,
    outer: run.outer,
    peer: run.self,
    run: run.id,
    outerStep,
    schemaHash: manifest.schemaHash,
    weight: tokens,
    pseudoGradient: await pseudoGradientOf(run, noted),
    base,
    rejoins: progress.apart !== null,
    range,
  }
  // The commit of the step before still reads what is about to change.
  if (contributingMoves(update)) await run.commit
  const given = await contributionOf(update, run.clock)
  const { exchange } = run
  if (weights === undefined) return { contribution: given, exchange, noted, range, base }
  return {
    contribution: joinContributions(given, weights.own),
    exchange: withWeights(exchange, given, weights),
    noted,
    range,
    base,
  }
}

/** Outer minus local parameters (DiLoCo's sign), in place of the local ones unless the run goes on from them. */
async function pseudoGradientOf(run: ReadyRun, local: Float32Array): Promise<Float32Array> {
  const { parameters } = run.outer
  const { overlapSteps = 0, fragments = 1 } = run.manifest.averaging
  const isKept = overlapSteps > 0 || fragments > 1
  const difference = isKept ? new Float32Array(local.length) : local
  for await (const [from, to] of slicesInTurns(local.length, run.clock)) {
    for (let i = from; i < to; i++) difference[i] = parameters[i]! - local[i]!
  }
  if (!isFiniteVector(difference)) {
    throw new ShoalError(
      'engine_failed',
      'training diverged (parameters are no longer finite): use a smaller inner.learningRate in a new run',
    )
  }
  return difference
}
