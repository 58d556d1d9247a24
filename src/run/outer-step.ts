/**
 * One outer step of a run: inner steps, pseudo-gradient, round, outer update, commit.
 *
 * Everything numeric goes slice by slice and yields in between, so that the node answers its peers meanwhile.
 */
import { withDeadline, type Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { isFiniteVector } from '../tensor/vector.ts'
import { commitState } from './commit.ts'
import type { Contribution } from './contribution.ts'
import { plannedTokens } from './model-schema.ts'
import { applyRound, contributingMoves, contributionOf, takeBack } from './outer-update.ts'
import { planInnerSteps, type InnerPlan } from './pace.ts'
import { choosePartners, type Partners } from './partners.ts'
import { reconcile } from './rejoin.ts'
import { performRound, type RoundResult } from './round.ts'
import { bytesReceived, bytesSent, publishRecord, setStatus, type ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'
import type { RoundView } from './view.ts'

/** What a round has shown beside its outcome. */
export interface StepResult {
  outcome: RoundResult['outcome']
  /** All-reduce runs: members of the majority whose parameters this peer should take over; empty when it has them. */
  repairFrom: string[]
}

/** Trains one outer step and commits it. Rejects only when aborted or when training or storing fails. */
export async function trainOuterStep(run: ReadyRun, signal: AbortSignal): Promise<StepResult> {
  const { progress, manifest } = run
  const { outerStep } = progress
  const { tokens, plan, elapsedMs } = await trainInnerSteps(run, signal)
  const isExact = manifest.averaging.rule === 'diloco'
  const base = isExact ? progress.parametersHash : null
  const update = {
    averaging: manifest.averaging,
    outer: run.outer,
    peer: run.self,
    run: run.id,
    outerStep,
    schemaHash: manifest.schemaHash,
    weight: tokens,
    pseudoGradient: await pseudoGradientOf(run),
    base,
    rejoins: progress.apart !== null,
  }
  // The commit of the step before still reads what is about to change.
  if (contributingMoves(update)) await run.commit
  const own = await contributionOf(update, run.clock)
  const sentBefore = bytesSent(run)
  const receivedBefore = bytesReceived(run)
  const lag = run.membership.lag(outerStep)
  const result = await performRound(run.exchange, run.clock, {
    key: { outerStep, phase: 'outer' },
    own,
    partners: partnersOfStep(run, outerStep),
    exact: isExact,
    staleness: manifest.limits.staleness,
    patienceMs: run.pace.patienceMs(plan, plan.targetMs - elapsedMs, lag),
    transferMs: run.pace.transferMs(),
    timeoutMs: manifest.limits.roundTimeoutMs,
    signal,
  })
  run.pace.note(result.times)
  for (const peer of result.unreachable) run.membership.doubt(peer)
  const consensusDistance = await updateOuterState(run, result, own)
  const reconciled = isExact
    ? await reconcile(run, result.contributions, { base, tokens }, signal)
    : undefined
  await run.trainer.writeParameters(run.outer.parameters)
  noteRound(run, result, {
    consensusDistance: reconciled?.merged === true ? null : consensusDistance,
    bytesSent: bytesSent(run) - sentBefore,
    bytesReceived: bytesReceived(run) - receivedBefore,
  })
  run.membership.noteInStep(progress.outerStep, progress.tokens, reconciled?.together)
  await commitState(run, signal)
  await publishRecord(run)
  return { outcome: result.outcome, repairFrom: reconciled?.repairFrom ?? [] }
}

/** The outer update of a round. Returns the consensus distance before it, as far as the round can tell. */
async function updateOuterState(
  run: ReadyRun,
  { contributions }: RoundResult,
  own: Contribution,
): Promise<number | null> {
  // From here on what the commit of the step before still reads changes in any case.
  await run.commit
  if (!contributions.includes(own)) await takeBack(run.outer, own, run.clock)
  return applyRound(
    {
      averaging: run.manifest.averaging,
      outer: run.outer,
      self: run.self,
      contributions,
      swarm: run.membership.trainers(run.progress.outerStep).length + 1,
    },
    run.clock,
  )
}

interface Trained {
  tokens: number
  plan: InnerPlan
  elapsedMs: number
}

/** As many inner steps as the swarm's pace leaves time for. */
async function trainInnerSteps(run: ReadyRun, signal: AbortSignal): Promise<Trained> {
  const { progress, clock, id, manifest } = run
  const { outerStep } = progress
  const plan = planInnerSteps(
    {
      ownRate: progress.tokensPerSecond,
      otherRates: run.membership.trainers(outerStep).map(({ record }) => record.tokensPerSecond),
      lag: run.membership.lag(outerStep),
    },
    {
      innerSteps: manifest.innerSteps,
      tokens: plannedTokens(manifest),
      limits: manifest.limits,
    },
  )
  const startedMs = clock.now()
  const result = await withTimer(clock, plan.budgetMs, (enough) =>
    run.trainer.innerSteps(outerStep, {
      signal,
      enough,
      steps: plan.steps,
      onProgress: ({ step, loss }) => {
        progress.innerStep = step
        run.emit({ type: 'inner_progress', run: id, outerStep, innerStep: step, loss })
      },
      onSilence: async (silent) => {
        setStatus(run, silent ? 'silent' : 'training')
        await publishRecord(run)
      },
    }),
  )
  const elapsedMs = clock.now() - startedMs
  progress.innerStep = result.steps
  progress.tokens += result.tokens
  progress.loss = result.loss
  progress.tokensPerSecond = (result.tokens * 1000) / Math.max(1, elapsedMs)
  run.metrics.add('tokens_total', result.tokens)
  return { tokens: result.tokens, plan, elapsedMs }
}

/** What runs longer needs no timer, and there are none beyond 24 days. */
const LONGEST_TIMER_MS = 86_400_000

/** Work with a signal that fires when its time is up; the timer ends with the work. */
async function withTimer<T>(
  clock: Clock,
  ms: number,
  work: (expired: AbortSignal | undefined) => Promise<T>,
): Promise<T> {
  if (ms > LONGEST_TIMER_MS) return work(undefined)
  return withDeadline(clock, ms, 'the time for inner steps', undefined, work)
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

function partnersOfStep(run: ReadyRun, outerStep: number): Partners {
  const { id, self, manifest, membership } = run
  const members = membership.trainers(outerStep).map(({ peer }) => peer)
  return choosePartners({ self, run: id, averaging: manifest.averaging }, outerStep, members)
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
