/**
 * The inner steps of an outer step: as many as the swarm's pace leaves time for, some of them beside the round before.
 */
import { withDeadline, type Clock } from '../clock.ts'
import { plannedTokens } from './model-schema.ts'
import { addWork, NO_WORK, overlapPlan, type InnerWork, type OverlapPlan } from './overlap.ts'
import { planInnerSteps, type InnerPlan } from './pace.ts'
import { publishRecord, setStatus, type ReadyRun } from './run-context.ts'
import type { InnerStepsOptions } from './trainer.ts'

export interface Trained extends InnerWork {
  plan: InnerPlan
}

/** The inner steps that are left of the next outer step. */
export async function trainInnerSteps(run: ReadyRun, signal: AbortSignal): Promise<Trained> {
  const { progress, clock, manifest } = run
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
  const ahead = run.local ?? NO_WORK
  const range = { outerStep, from: ahead.steps, steps: Math.max(1, plan.steps - ahead.steps) }
  const budgetMs = Math.max(0, plan.budgetMs - ahead.elapsedMs)
  const done = await withTimer(clock, budgetMs, run.leaving, (enough) =>
    train(run, range, { signal, enough }),
  )
  const trained = addWork(ahead, done)
  progress.innerStep = trained.steps
  progress.tokens += trained.tokens
  progress.loss = trained.loss
  progress.tokensPerSecond = (done.tokens * 1000) / Math.max(1, done.elapsedMs)
  return { ...trained, plan }
}

/**
 * Inner steps of the outer step after this one, beside its round: as many as the manifest says, then more until the
 * round has ended, or half of an outer step is done. `done`: inner steps of this outer step.
 */
export async function trainBeside(
  run: ReadyRun,
  done: number,
  roundEnded: AbortSignal,
  signal: AbortSignal,
): Promise<InnerWork> {
  const outerStep = run.progress.outerStep + 1
  const { steps, latest } = planBeside(run, done)
  if (steps === 0) return NO_WORK
  const first = await train(run, { outerStep, from: 0, steps }, { signal })
  if (roundEnded.aborted || latest <= steps) return first
  const rest = { outerStep, from: steps, steps: latest - steps }
  return addWork(first, await train(run, rest, { signal, enough: roundEnded }))
}

/** Zeros where nothing is trained beside the round of this outer step. */
export function planBeside(
  { manifest, outside, progress }: Pick<ReadyRun, 'manifest' | 'outside' | 'progress'>,
  done: number,
): OverlapPlan {
  const plan = overlapPlan(manifest, done)
  // An outside process does whole outer steps, and after the last one there is nothing to do.
  const isBeside = outside === undefined && progress.outerStep + 1 < manifest.outerSteps
  return plan.steps > 0 && isBeside ? plan : { steps: 0, latest: 0 }
}

async function train(
  run: ReadyRun,
  { outerStep, ...range }: { outerStep: number; from: number; steps: number },
  options: Pick<InnerStepsOptions, 'signal' | 'enough'>,
): Promise<InnerWork> {
  const { progress, clock, id, metrics } = run
  const startedMs = clock.now()
  const result = await run.trainer.innerSteps(outerStep, {
    ...range,
    ...options,
    onProgress: ({ step, loss }) => {
      progress.innerStep = step
      run.emit({ type: 'inner_progress', run: id, outerStep, innerStep: step, loss })
    },
    onSilence: async (silent) => {
      setStatus(run, silent ? 'silent' : 'training')
      await publishRecord(run)
    },
  })
  metrics.add('tokens_total', result.tokens)
  return { ...result, elapsedMs: clock.now() - startedMs }
}

/** What runs longer needs no timer, and there are none beyond 24 days. */
const LONGEST_TIMER_MS = 86_400_000

/** Work with a signal that fires when its time is up, or with `signal`; the timer ends with the work. */
async function withTimer<T>(
  clock: Clock,
  ms: number,
  signal: AbortSignal,
  work: (expired: AbortSignal) => Promise<T>,
): Promise<T> {
  if (ms > LONGEST_TIMER_MS) return work(signal)
  return withDeadline(clock, ms, 'the time for inner steps', signal, work)
}
