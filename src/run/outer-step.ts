/**
 * One outer step of a run: inner steps, pseudo-gradient, round, outer update, commit.
 *
 * Everything numeric goes slice by slice and yields in between, so that the node answers its peers meanwhile.
 */
import { ShoalError } from '../errors.ts'
import { isFiniteVector } from '../tensor/vector.ts'
import { commitState } from './commit.ts'
import { joinContributions, type Contribution } from './contribution.ts'
import type { Judgement } from './defence.ts'
import { adoptMean, driftOf, isTooFar, type Drift } from './drift.ts'
import { sendWeights, withWeights } from './early-weights.ts'
import { planBeside, trainBeside, trainInnerSteps, type Trained } from './inner-steps.ts'
import { applyRound, contributingMoves, contributionOf, takeBack } from './outer-update.ts'
import {
  applyCorrection,
  exchangedRange,
  sendsWeightsEarly,
  type Correction,
  type InnerWork,
} from './overlap.ts'
import { choosePartners, type Partners } from './partners.ts'
import { reconcile } from './rejoin.ts'
import { performRound, type RoundExchange, type RoundResult } from './round.ts'
import {
  bytesReceived,
  bytesSent,
  publishRecord,
  standStill,
  startFromOuter,
  type ReadyRun,
} from './run-context.ts'
import { slicesInTurns } from './slices.ts'
import type { RoundView } from './view.ts'

/** Share of the time that a round beside training may take in which the group is waited for. */
const PATIENCE_SHARE = 3 / 4

/** What a round has shown beside its outcome. */
export interface StepResult {
  outcome: RoundResult['outcome']
  /** All-reduce runs: members of the majority whose parameters this peer should take over; empty when it has them. */
  repairFrom: string[]
}

/** Trains one outer step and commits it. Rejects only when aborted or when training or storing fails. */
export async function trainOuterStep(run: ReadyRun, signal: AbortSignal): Promise<StepResult> {
  const over = new AbortController()
  try {
    return await trainAndExchange(run, AbortSignal.any([signal, over.signal]))
  } finally {
    over.abort(new ShoalError('aborted', 'the outer step is over'))
  }
}

async function trainAndExchange(run: ReadyRun, signal: AbortSignal): Promise<StepResult> {
  const { progress, manifest } = run
  const { outerStep } = progress
  const { averaging } = manifest
  const sentBefore = bytesSent(run)
  const receivedBefore = bytesReceived(run)
  const weights = sendsWeightsEarly(averaging)
    ? await sendWeights(run, partnersOfStep(run).group, signal)
    : undefined
  const trained = await trainInnerSteps(run, signal)
  const isExact = averaging.rule === 'diloco'
  const base = isExact ? progress.parametersHash : null
  const noted = await run.trainer.readParameters()
  const update = {
    averaging,
    outer: run.outer,
    peer: run.self,
    run: run.id,
    outerStep,
    schemaHash: manifest.schemaHash,
    weight: trained.tokens,
    pseudoGradient: await pseudoGradientOf(run, noted),
    base,
    rejoins: progress.apart !== null,
    range: exchangedRange(manifest, outerStep, run.elements),
  }
  // The commit of the step before still reads what is about to change.
  if (contributingMoves(update)) await run.commit
  const given = await contributionOf(update, run.clock)
  const own = weights === undefined ? given : joinContributions(given, weights.own)
  const exchange = weights === undefined ? run.exchange : withWeights(run.exchange, given, weights)
  const { result: round, ahead } = await roundBesideTraining(
    run,
    { exchange, own, trained },
    signal,
  )
  run.pace.note(round.times)
  for (const peer of round.unreachable) run.membership.doubt(peer)
  const result = await judge(run, round, signal)
  const consensusDistance = await updateOuterState(run, result, own)
  const reconciled = isExact
    ? await standStill(
        run,
        reconcile(run, result.contributions, { base, tokens: trained.tokens }, signal),
      )
    : undefined
  if (reconciled?.merged === true) await startFromOuter(run)
  else await startFromCorrection(run, { noted, range: update.range, ahead })
  noteRound(run, result, {
    consensusDistance: reconciled?.merged === true ? null : consensusDistance,
    bytesSent: bytesSent(run) - sentBefore,
    bytesReceived: bytesReceived(run) - receivedBefore,
    overlapSteps: ahead.steps,
  })
  run.membership.noteInStep(progress.outerStep, progress.tokens, reconciled?.together)
  await commitState(run, signal)
  await publishRecord(run)
  return { outcome: result.outcome, repairFrom: reconciled?.repairFrom ?? [] }
}

interface OwnRound {
  exchange: RoundExchange
  own: Contribution
  trained: Trained
}

/** The round, and beside it what the manifest lets overlap of the next inner steps. */
async function roundBesideTraining(
  run: ReadyRun,
  { exchange, own, trained }: OwnRound,
  outer: AbortSignal,
): Promise<{ result: RoundResult; ahead: InnerWork }> {
  const { manifest, pace, membership, progress } = run
  const { limits, averaging } = manifest
  const isExact = averaging.rule === 'diloco'
  const { plan, elapsedMs, steps } = trained
  const usualMs = pace.patienceMs(
    plan,
    plan.targetMs - elapsedMs,
    membership.lag(progress.outerStep),
  )
  // Beside training there is time to wait, and some to ask others after that.
  const trainingMs = (planBeside(run, steps).latest * elapsedMs) / Math.max(1, steps)
  const besideMs = PATIENCE_SHARE * Math.min(limits.roundTimeoutMs, trainingMs)
  const [failed, ended, cut] = [new AbortController(), new AbortController(), new AbortController()]
  const signal = AbortSignal.any([outer, failed.signal])
  const round = performRound(exchange, run.clock, {
    key: { outerStep: progress.outerStep, phase: 'outer' },
    own,
    partners: partnersOfStep(run),
    exact: isExact,
    staleness: limits.staleness,
    patienceMs: isExact ? usualMs : Math.max(usualMs, besideMs),
    transferMs: pace.transferMs(),
    timeoutMs: limits.roundTimeoutMs,
    cut: cut.signal,
    signal,
  }).finally(() => ended.abort())
  // Awaited below; until then its failure, when the run is stopped, must not count as unhandled.
  round.catch(() => {})
  try {
    const ahead = await trainBeside(run, steps, ended.signal, signal)
    // Peers of an all-reduce round must come to the same set: they wait for it instead.
    if (ahead.steps > 0 && !isExact) cut.abort(new ShoalError('timeout', 'too late for the round'))
    return { result: await standStill(run, round), ahead }
  } catch (thrown) {
    failed.abort(thrown)
    await round.catch(() => {})
    throw thrown
  }
}

/** The next inner steps go on from the local parameters, corrected by what the round has come to. */
async function startFromCorrection(
  run: ReadyRun,
  { noted, range, ahead }: Pick<Correction, 'noted' | 'range'> & { ahead: InnerWork },
): Promise<void> {
  const { parameters: outer } = run.outer
  if (ahead.steps === 0 && range[1] - range[0] === run.elements) return startFromOuter(run)
  const local = ahead.steps === 0 ? noted : await run.trainer.readParameters()
  await applyCorrection({ noted, local, outer, range }, run.clock)
  run.local = { ...ahead, parameters: local }
  await run.trainer.writeParameters(local)
}

/** The outer update of a round. Returns the consensus distance before it, as far as the round can tell. */
async function updateOuterState(
  run: ReadyRun,
  { contributions, factors, reasons }: JudgedResult,
  own: Contribution,
): Promise<number | null> {
  // From here on what the commit of the step before still reads changes in any case.
  await run.commit
  if (!contributions.includes(own)) await takeBack(run.outer, own, run.clock)
  const drift = await excessiveDrift(run, contributions)
  if (drift !== undefined) {
    run.logger.warn('drifted', { run: run.id, outerStep: run.progress.outerStep, ...drift })
    reasons.push(`${(100 * drift.own).toFixed(0)} % away from the group: took its mean over`)
    await adoptMean(run.outer, contributions, run.clock)
    return drift.own
  }
  return applyRound(
    {
      averaging: run.manifest.averaging,
      outer: run.outer,
      self: run.self,
      contributions,
      factors,
      swarm: run.membership.trainers(run.progress.outerStep).length + 1,
    },
    run.clock,
  )
}

/** Of a gossip peer that should not step from where it is. A robust one has tests of its own, and clips. */
async function excessiveDrift(
  { manifest, defence, self, clock }: ReadyRun,
  contributions: readonly Contribution[],
): Promise<Drift | undefined> {
  const isGossip = manifest.averaging.rule !== 'diloco' && defence === undefined
  if (!isGossip || contributions.length < 2) return undefined
  const drift = await driftOf(contributions, self, clock)
  return isTooFar(drift) ? drift : undefined
}

interface JudgedResult extends RoundResult {
  factors?: Judgement['factors']
}

/** The result of a round without what this peer's own tests reject, where the manifest asks for them. */
async function judge(
  run: ReadyRun,
  result: RoundResult,
  signal: AbortSignal,
): Promise<JudgedResult> {
  const { defence, outer, progress, metrics } = run
  if (defence === undefined) return result
  const { contributions, partners, reasons, outcome } = result
  const { outerStep } = progress
  const judgement = await defence.judge({ outer, outerStep, contributions }, signal)
  const { accepted, factors, rejected } = judgement
  for (const { verdict } of rejected) metrics.add('contributions_rejected_total', 1, verdict)
  const told = rejected.map(({ peer, verdict }) => `${peer.slice(-8)}: rejected (${verdict})`)
  const left = partners.filter((partner) => accepted.some(({ peer }) => peer === partner))
  return {
    ...result,
    contributions: accepted,
    factors,
    partners: left,
    outcome: outcome === 'averaged' && left.length === 0 ? 'solo' : outcome,
    reasons: [...reasons, ...told],
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

function partnersOfStep(run: ReadyRun): Partners {
  const { id, self, manifest, membership } = run
  const { outerStep } = run.progress
  const members = membership.trainers(outerStep).map(({ peer }) => peer)
  return choosePartners({ self, run: id, averaging: manifest.averaging }, outerStep, members)
}

function noteRound(
  run: ReadyRun,
  result: RoundResult,
  measured: Pick<RoundView, 'bytesSent' | 'bytesReceived' | 'overlapSteps'> & {
    consensusDistance: number | null
  },
): void {
  const { progress } = run
  const round: RoundView = {
    outerStep: progress.outerStep,
    outcome: result.outcome,
    partners: result.partners,
    durationMs: Math.round(result.durationMs),
    bytesSent: measured.bytesSent,
    bytesReceived: measured.bytesReceived,
    overlapSteps: measured.overlapSteps,
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
