/**
 * One outer step of a run: inner steps, pseudo-gradient, round, outer update, commit.
 *
 * Everything numeric goes slice by slice and yields in between, so that the node answers its peers meanwhile.
 */
import { ShoalError } from '../errors.ts'
import { commitState } from './commit.ts'
import { sendWeights } from './early-weights.ts'
import { planBeside, trainBeside, trainInnerSteps, type Trained } from './inner-steps.ts'
import { applyCorrection, sendsWeightsEarly, type InnerWork } from './overlap.ts'
import { contribute, type OwnContribution } from './own-contribution.ts'
import { choosePartners, type Partners } from './partners.ts'
import { reconcile, type Reconciled } from './rejoin.ts'
import { takeEffect } from './round-effect.ts'
import { performRound, type RoundResult } from './round.ts'
import {
  bytesReceived,
  bytesSent,
  publishRecord,
  standStill,
  startFromOuter,
  type ReadyRun,
} from './run-context.ts'
import { throughputOf } from './throughput.ts'
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
  const { progress, membership, manifest } = run
  const traffic = trafficFromNow(run)
  const weights = sendsWeightsEarly(manifest.averaging)
    ? await sendWeights(run, partnersOfStep(run).group, signal)
    : undefined
  const trained = await trainInnerSteps(run, signal)
  const own = await contribute(run, trained.tokens, weights)
  const { round, ahead } = await roundBesideTraining(run, own, trained, signal)
  run.pace.note(round.times)
  for (const peer of round.unreachable) membership.doubt(peer)
  const effect = await takeEffect(run, round, own.contribution, signal)
  const reconciled = await reconcileReplicas(run, effect.result, own, trained, signal)
  if (reconciled?.merged === true) await startFromOuter(run)
  else await startFromCorrection(run, own, ahead)
  noteRound(run, effect.result, {
    // The merge has told it.
    consensusDistance: reconciled?.merged === true ? null : effect.consensusDistance,
    overlapSteps: ahead.steps,
    ...traffic(),
  })
  membership.noteInStep(progress.outerStep, progress.tokens, reconciled?.together)
  await commitState(run, signal)
  await publishRecord(run)
  const repairFrom = [...round.wiser, ...(reconciled?.repairFrom ?? [])]
  return { outcome: effect.result.outcome, repairFrom }
}

/** Bytes of rounds since it was called. */
function trafficFromNow(run: ReadyRun): () => Pick<RoundView, 'bytesSent' | 'bytesReceived'> {
  const [sentBefore, receivedBefore] = [bytesSent(run), bytesReceived(run)]
  return () => ({
    bytesSent: bytesSent(run) - sentBefore,
    bytesReceived: bytesReceived(run) - receivedBefore,
  })
}

/** All-reduce runs: sees to it that the members of the round hold equal parameters. */
async function reconcileReplicas(
  run: ReadyRun,
  { contributions }: RoundResult,
  { base }: OwnContribution,
  { tokens }: Trained,
  signal: AbortSignal,
): Promise<Reconciled | undefined> {
  if (run.manifest.averaging.rule !== 'diloco') return undefined
  return standStill(run, reconcile(run, contributions, { base, tokens }, signal))
}

/** The round, and beside it what the manifest lets overlap of the next inner steps. */
async function roundBesideTraining(
  run: ReadyRun,
  { exchange, contribution: own }: OwnContribution,
  trained: Trained,
  outer: AbortSignal,
): Promise<{ round: RoundResult; ahead: InnerWork }> {
  const { manifest, pace, progress } = run
  const { limits, averaging } = manifest
  const isExact = averaging.rule === 'diloco'
  const [failed, ended, cut] = [new AbortController(), new AbortController(), new AbortController()]
  const signal = AbortSignal.any([outer, failed.signal])
  const key = { outerStep: progress.outerStep, phase: 'outer' } as const
  const search = (): Promise<Partners> => {
    // Those who come while this peer waits for them find it.
    exchange.offer(key, own)
    return company(run, trained, signal)
  }
  const perform = async (): Promise<RoundResult> =>
    performRound(exchange, run.clock, {
      key,
      own,
      partners: isExact ? await search() : partnersOfStep(run),
      exact: isExact,
      staleness: limits.staleness,
      patienceMs: patienceMs(run, trained),
      transferMs: pace.transferMs(),
      timeoutMs: limits.roundTimeoutMs,
      cut: cut.signal,
      signal,
    })
  const round = perform().finally(() => ended.abort())
  // Awaited below; until then its failure, when the run is stopped, must not count as unhandled.
  round.catch(() => {})
  try {
    const ahead = await trainBeside(run, trained.steps, ended.signal, signal)
    // Peers of an all-reduce round must come to the same set: they wait for it instead.
    if (ahead.steps > 0 && !isExact) cut.abort(new ShoalError('timeout', 'too late for the round'))
    return { round: await standStill(run, round), ahead }
  } catch (thrown) {
    failed.abort(thrown)
    await round.catch(() => {})
    throw thrown
  }
}

/** How long partners are waited for. */
function patienceMs(run: ReadyRun, { plan, elapsedMs, steps }: Trained): number {
  const { manifest, pace, membership, progress } = run
  const { limits, averaging } = manifest
  const lag = membership.lag(progress.outerStep)
  const usualMs = pace.patienceMs(plan, plan.targetMs - elapsedMs, lag)
  if (averaging.rule === 'diloco') return usualMs
  // Beside training there is time to wait, and some to ask others after that.
  const trainingMs = (planBeside(run, steps).latest * elapsedMs) / Math.max(1, steps)
  return Math.max(usualMs, PATIENCE_SHARE * Math.min(limits.roundTimeoutMs, trainingMs))
}

/** The next inner steps go on from the local parameters, corrected by what the round has come to. */
async function startFromCorrection(
  run: ReadyRun,
  { noted, range }: OwnContribution,
  ahead: InnerWork,
): Promise<void> {
  const { parameters: outer } = run.outer
  if (ahead.steps === 0 && range[1] - range[0] === run.elements) return startFromOuter(run)
  const local = ahead.steps === 0 ? noted : await run.trainer.readParameters()
  await applyCorrection({ noted, local, outer, range }, run.clock)
  run.local = { ...ahead, parameters: local }
  await run.trainer.writeParameters(local)
}

function partnersOfStep(run: ReadyRun): Partners {
  const { id, self, manifest, membership } = run
  const { outerStep } = run.progress
  const members = membership.trainers(outerStep).map(({ peer }) => peer)
  return choosePartners({ self, run: id, averaging: manifest.averaging }, outerStep, members)
}

/** Partners of an all-reduce round, who are waited for when there are none. Whoever leaves waits for nobody. */
async function company(run: ReadyRun, trained: Trained, signal: AbortSignal): Promise<Partners> {
  const waiting = AbortSignal.any([signal, run.leaving])
  const search = {
    choose: () => partnersOfStep(run),
    elsewhere: () => run.membership.front(run.progress.outerStep).length > 0,
    patienceMs: patienceMs(run, trained),
  }
  try {
    return await run.company.find(search, waiting)
  } catch (thrown) {
    if (signal.aborted) throw thrown
    return search.choose()
  }
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
    throughput: throughputOf(progress.tokensPerSecond, run.membership.others()),
    round,
  })
}
