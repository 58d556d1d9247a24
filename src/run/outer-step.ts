/**
 * One outer step of a run: inner steps, pseudo-gradient, round, outer update, commit.
 *
 * Everything numeric goes slice by slice and yields in between, so that the node answers its peers meanwhile.
 */
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { isFiniteVector } from '../tensor/vector.ts'
import { commitState } from './commit.ts'
import { applyRound, contributingMoves, contributionOf, takeBack } from './outer-update.ts'
import { partnersOf, type Partners } from './partners.ts'
import { performRound, type RoundResult } from './round.ts'
import { bytesReceived, bytesSent, publishRecord, type ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'
import type { RoundView } from './view.ts'

/** Trains one outer step and commits it. Returns the round's outcome; rejects only when aborted or when training fails. */
export async function trainOuterStep(
  run: ReadyRun,
  signal: AbortSignal,
): Promise<RoundResult['outcome']> {
  const { progress, manifest } = run
  const { outerStep } = progress
  const tokens = await trainInnerSteps(run, signal)
  const pseudoGradient = await pseudoGradientOf(run)
  const update = {
    averaging: manifest.averaging,
    outer: run.outer,
    peer: run.self,
    run: run.id,
    outerStep,
    schemaHash: manifest.schemaHash,
    weight: tokens,
    pseudoGradient,
  }
  // The commit of the step before still reads what is about to change.
  if (contributingMoves(update)) await run.commit
  const own = await contributionOf(update, run.clock)
  const sentBefore = bytesSent(run)
  const receivedBefore = bytesReceived(run)
  const result = await performRound(run.exchange, run.clock, {
    key: { outerStep, phase: 'outer' },
    own,
    partners: choosePartners(run, outerStep),
    plan: own.plan,
    exact: manifest.averaging.rule === 'diloco',
    staleness: manifest.limits.staleness,
    timeoutMs: manifest.limits.roundTimeoutMs,
    signal,
  })
  for (const peer of result.unreachable) run.membership.doubt(peer)
  // From here on what the commit of the step before still reads changes in any case.
  await run.commit
  if (!result.contributions.includes(own)) await takeBack(run.outer, own, run.clock)
  const consensusDistance = await applyRound(
    {
      averaging: manifest.averaging,
      outer: run.outer,
      self: run.self,
      contributions: result.contributions,
      swarm: run.membership.trainers(outerStep).length + 1,
    },
    run.clock,
  )
  await run.trainer.writeParameters(run.outer.parameters)
  noteRound(run, result, {
    consensusDistance,
    bytesSent: bytesSent(run) - sentBefore,
    bytesReceived: bytesReceived(run) - receivedBefore,
  })
  await commitState(run, signal)
  await publishRecord(run)
  return result.outcome
}

async function trainInnerSteps(run: ReadyRun, signal: AbortSignal): Promise<number> {
  const { progress, clock, id } = run
  const startedMs = clock.now()
  const result = await run.trainer.innerSteps(progress.outerStep, {
    signal,
    onProgress: ({ step, loss }) => {
      progress.innerStep = step
      run.emit({
        type: 'inner_progress',
        run: id,
        outerStep: progress.outerStep,
        innerStep: step,
        loss,
      })
    },
  })
  progress.innerStep = result.steps
  progress.tokens += result.tokens
  progress.loss = result.loss
  progress.tokensPerSecond = (result.tokens * 1000) / Math.max(1, clock.now() - startedMs)
  run.metrics.add('tokens_total', result.tokens)
  return result.tokens
}

/** Outer minus local parameters (DiLoCo's sign), computed in place of the local ones. */
async function pseudoGradientOf(run: ReadyRun): Promise<Float32Array> {
  const local = await run.trainer.readParameters()
  const { parameters } = run.outer
  for await (const [from, to] of slicesInTurns(local.length, run.clock)) {
    for (let index = from; index < to; index++) local[index] = parameters[index]! - local[index]!
  }
  if (!isFiniteVector(local)) {
    throw new ShoalError(
      'engine_failed',
      'training diverged (parameters are no longer finite): use a smaller inner.learningRate in a new run',
    )
  }
  return local
}

function choosePartners(run: ReadyRun, outerStep: number): Partners {
  const { averaging } = run.manifest
  const members = run.membership.trainers(outerStep)
  if (averaging.rule === 'diloco')
    return { group: members.slice(0, LIMITS.groupPeers - 1), candidates: [] }
  return partnersOf(run.self, run.id, outerStep, members, averaging.groupSize)
}

function noteRound(
  run: ReadyRun,
  result: RoundResult,
  measured: { consensusDistance: number | null; bytesSent: number; bytesReceived: number },
): void {
  const { progress } = run
  const round: RoundView = {
    outerStep: progress.outerStep,
    outcome: result.outcome,
    partners: result.partners,
    durationMs: Math.round(result.durationMs),
    bytesSent: measured.bytesSent,
    bytesReceived: measured.bytesReceived,
    reasons: result.reasons,
  }
  progress.round = round
  progress.rounds[result.outcome]++
  progress.consensusDistance = measured.consensusDistance ?? progress.consensusDistance
  progress.outerStep++
  run.metrics.add('rounds_total', 1, result.outcome)
  run.emit({
    type: 'outer_step',
    run: run.id,
    outerStep: progress.outerStep,
    loss: progress.loss ?? 0,
    tokens: progress.tokens,
    tokensPerSecond: progress.tokensPerSecond,
    consensusDistance: progress.consensusDistance,
    round,
  })
}
