/**
 * The final merge: replicas are averaged all-to-all until they agree, then one checkpoint is published.
 *
 * Up to 32 replicas exchange with everyone at once. More are laid on a square grid (Moshpit, arXiv 2103.03239): first
 * the rows average, then the columns, weighted by the replicas behind each value. Everyone, the sender included, uses
 * the de-quantised values of an agreed set in peer-id order, so that those who merged together end bit-identical and
 * make the same checkpoint CID.
 */
import { trimmedMean, weightedMean } from '../optim/combine.ts'
import { LIMITS } from '../limits.ts'
import { norm, squaredDistance } from '../tensor/vector.ts'
import { commitState } from './commit.ts'
import {
  contributionPlan,
  decodeSlice,
  encodeContribution,
  type Contribution,
  type RoundKey,
} from './contribution.ts'
import { shuffledMembers } from './partners.ts'
import { performRound } from './round.ts'
import { publishRecord, setStatus, startFromOuter, type ReadyRun } from './run-context.ts'
import { slicesInTurns } from './slices.ts'

/** Rounds that the final merge may last: it waits for peers that are finishing their last step. */
const MERGE_PATIENCE = 2
/** Of the values of a parameter, from either end, that a robust run leaves out: one at least where three are there. */
const TRIMMED_SHARE = 1 / 5

/** Groups (without `self`) of the merge's stages for these members. */
export function mergeGroups(
  self: string,
  run: string,
  outerStep: number,
  members: readonly string[],
): string[][] {
  const order = shuffledMembers(run, outerStep, [...members, self])
  const others = (group: string[]): string[] => group.filter((peer) => peer !== self).sort()
  if (order.length <= LIMITS.groupPeers) return [others(order)]
  const side = Math.ceil(Math.sqrt(order.length))
  const position = order.indexOf(self)
  const row = order.filter((_, index) => Math.floor(index / side) === Math.floor(position / side))
  const column = order.filter((_, index) => index % side === position % side)
  return [others(row), others(column)]
}

/** Merges, commits the final checkpoint and publishes it. Returns the peers merged with. */
export async function mergeReplicas(run: ReadyRun, signal: AbortSignal): Promise<string[]> {
  setStatus(run, 'merging')
  await publishRecord(run)
  const { outerSteps } = run.manifest
  const groups = mergeGroups(run.self, run.id, outerSteps, run.membership.mergers())
  const merged = new Set<string>()
  let replicas = 1
  for (const [stage, group] of groups.entries()) {
    if (group.length === 0) continue
    const phase = stage === 0 ? 'merge-0' : 'merge-1'
    const key = { outerStep: outerSteps, phase } as const
    // The others may be finishing their last step.
    const patienceMs = run.manifest.limits.roundTimeoutMs
    const exchange = { key, group, weight: replicas, patienceMs }
    const contributions = await exchangeParameters(run, exchange, signal)
    if (contributions.length < 2) continue
    const weights = contributions.map(({ header }) => Math.min(header.weight, LIMITS.runPeers))
    const consensusDistance = await applyMean(run, contributions, weights)
    if (stage === 0) run.progress.consensusDistance = consensusDistance
    replicas = weights.reduce((sum, weight) => sum + weight, 0)
    for (const { peer } of contributions) merged.add(peer)
  }
  merged.delete(run.self)
  await startFromOuter(run)
  await commitState(run, signal, { final: true })
  setStatus(run, 'finished')
  await publishRecord(run)
  return [...merged].sort()
}

export interface ParametersExchange {
  key: RoundKey
  /** Without this peer. */
  group: string[]
  weight: number
  /** How long a member is waited for that is not ready. */
  patienceMs: number
}

/** Gives the own outer parameters to `group` and gets theirs: an agreed set, the own among it unless the others left it out. */
export async function exchangeParameters(
  run: ReadyRun,
  { key, group, weight, patienceMs }: ParametersExchange,
  signal: AbortSignal,
): Promise<Contribution[]> {
  const { manifest } = run
  const { roundTimeoutMs } = manifest.limits
  const own = await encodeContribution(
    {
      peer: run.self,
      run: run.id,
      key,
      schemaHash: manifest.schemaHash,
      weight,
      plan: contributionPlan(manifest.averaging, key.phase, [0, run.elements]),
      vectors: { parameters: run.outer.parameters },
    },
    run.clock,
  )
  const result = await performRound(run.exchange, run.clock, {
    key,
    own,
    partners: { group, candidates: [] },
    exact: true,
    staleness: 0,
    patienceMs,
    transferMs: roundTimeoutMs,
    timeoutMs: MERGE_PATIENCE * roundTimeoutMs,
    signal,
  })
  return result.contributions
}

/** Takes the weighted mean, or in a robust run that without the extremes, over as outer parameters. Returns the consensus distance before it. */
export async function applyMean(
  run: ReadyRun,
  contributions: readonly Contribution[],
  weights: readonly number[],
): Promise<number> {
  const isRobust = run.manifest.averaging.defence === 'robust'
  const mean = new Float32Array(run.elements)
  let squared = 0
  const { length } = contributions
  const trim = length < 3 ? 0 : Math.max(1, Math.floor(TRIMMED_SHARE * length))
  for await (const [from, to] of slicesInTurns(run.elements, run.clock)) {
    const slices = contributions.map((contribution) =>
      decodeSlice(contribution, 'parameters', from),
    )
    const target = mean.subarray(from, to)
    if (isRobust) target.set(trimmedMean(slices, trim))
    else weightedMean(slices, weights, target)
    for (const slice of slices) squared += squaredDistance(slice, target) / slices.length
  }
  await run.commit
  run.outer.parameters.set(mean)
  return Math.sqrt(squared) / Math.max(norm(mean), Number.MIN_VALUE)
}
