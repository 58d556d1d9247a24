/**
 * Replaying rounds of an all-reduce run: a peer that holds the state of an outer step and was not there for the next
 * ones gets their contributions, which are far smaller than the state, and moves its own the same way.
 *
 * Nothing is taken on trust of one peer: a replayed round needs the agreed set of those who were in it, and every
 * contribution names the hash of the parameters it started from, which must be those at hand.
 */
import { agreedPeers } from './agreement.ts'
import { commitState } from './commit.ts'
import { contributionPlan, type Contribution, type RoundKey } from './contribution.ts'
import { applyRound } from './outer-update.ts'
import { exchangedRange } from './overlap.ts'
import { LIMITS } from '../limits.ts'
import { publishRecord, startFromOuter, type ReadyRun } from './run-context.ts'

/** Replays what the others have completed, as far as possible. Returns how many rounds. */
export async function replayRounds(run: ReadyRun, signal: AbortSignal): Promise<number> {
  const { progress, manifest, membership } = run
  let replayed = 0
  while (progress.outerStep < manifest.outerSteps && membership.lag(progress.outerStep) > 0) {
    const contributions = await contributionsOf(run, signal)
    if (contributions === undefined) break
    await run.commit
    run.local = undefined
    await applyRound(
      {
        averaging: manifest.averaging,
        outer: run.outer,
        self: run.self,
        contributions,
        swarm: contributions.length,
      },
      run.clock,
    )
    progress.outerStep++
    replayed++
    await commitState(run, signal)
    // The next contributions must start from what this has come to.
    await run.commit
  }
  if (replayed > 0) {
    await startFromOuter(run)
    membership.noteInStep(progress.outerStep, progress.tokens)
    await publishRecord(run)
    run.logger.info('rounds_replayed', { run: run.id, rounds: replayed, to: progress.outerStep })
  }
  return replayed
}

/** The agreed set of the round that follows the own state; undefined when it cannot be had or led elsewhere. */
async function contributionsOf(
  run: ReadyRun,
  signal: AbortSignal,
): Promise<Contribution[] | undefined> {
  const { manifest, progress, exchange } = run
  const key: RoundKey = { outerStep: progress.outerStep, phase: 'outer' }
  const range = exchangedRange(manifest, key.outerStep, run.elements)
  const plan = contributionPlan(manifest.averaging, key.phase, range)
  const { roundTimeoutMs } = manifest.limits
  const members = run.membership
    .trainers(key.outerStep, LIMITS.keptRounds)
    .filter(({ record }) => record.outerStep > key.outerStep)
    .map(({ peer }) => peer)
    .slice(0, LIMITS.groupPeers)
  const options = { signal, patienceMs: run.pace.transferMs() }
  const pulled = await Promise.all(
    members.map((peer) =>
      exchange.pull(peer, key, {
        ...options,
        plan,
        schemaHash: manifest.schemaHash,
        transferMs: roundTimeoutMs,
        waits: false,
      }),
    ),
  )
  const contributions = pulled.flatMap((answer) =>
    answer.kind === 'contribution' ? [answer.contribution] : [],
  )
  const collected = await Promise.all(
    contributions.map(({ peer }) => exchange.collectedBy(peer, key, options)),
  )
  // Also those that are gone by now, but were in the round.
  const sets = new Map<string, readonly string[] | undefined>()
  for (const peer of collected.flatMap((set) => set ?? [])) sets.set(peer, undefined)
  for (const [index, { peer }] of contributions.entries()) sets.set(peer, collected[index])
  const agreed = agreedPeers(sets)
  const found = contributions
    .filter(({ peer }) => agreed.includes(peer))
    .sort((a, b) => (a.peer < b.peer ? -1 : 1))
  if (found.length === 0 || found.length < agreed.length) return undefined
  const isOurs = found.every(({ header }) => header.base === progress.parametersHash)
  return isOurs ? found : undefined
}
