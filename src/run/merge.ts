/**
 * The final merge: replicas are averaged all-to-all until they agree, then one checkpoint is published.
 *
 * Up to 32 replicas exchange with everyone at once. More are laid on a square grid (Moshpit, arXiv 2103.03239): first
 * the rows average, then the columns, weighted by the replicas behind each value. Everyone, the sender included, uses
 * the de-quantised values of an agreed set in peer-id order, so that those who merged together end bit-identical and
 * make the same checkpoint CID.
 */
import { weightedMean } from '../optim/combine.ts'
import { LIMITS } from '../limits.ts'
import { norm, squaredDistance } from '../tensor/vector.ts'
import { commitState } from './commit.ts'
import {
  contributionPlan,
  decodePart,
  encodeContribution,
  type Contribution,
  type Phase,
} from './contribution.ts'
import { shuffledMembers } from './partners.ts'
import { performRound } from './round.ts'
import { publishRecord, setStatus, type ReadyRun } from './run-context.ts'

/** The final merge waits for peers that are finishing their last step. */
const MERGE_PATIENCE = 2

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
  const groups = mergeGroups(run.self, run.id, run.manifest.outerSteps, run.membership.mergers())
  const merged = new Set<string>()
  let replicas = 1
  for (const [stage, group] of groups.entries()) {
    if (group.length === 0) continue
    const contributions = await exchangeParameters(
      run,
      stage === 0 ? 'merge-0' : 'merge-1',
      group,
      replicas,
      signal,
    )
    if (contributions.length < 2) continue
    replicas = await applyMean(run, contributions, stage === 0)
    for (const { peer } of contributions) merged.add(peer)
  }
  merged.delete(run.self)
  await run.trainer.writeParameters(run.outer.parameters)
  await commitState(run, signal, { final: true })
  setStatus(run, 'finished')
  await publishRecord(run)
  return [...merged].sort()
}

async function exchangeParameters(
  run: ReadyRun,
  phase: Phase,
  group: string[],
  replicas: number,
  signal: AbortSignal,
): Promise<Contribution[]> {
  const { manifest } = run
  const key = { outerStep: manifest.outerSteps, phase }
  const plan = contributionPlan(manifest.averaging, phase, run.elements)
  const own = await encodeContribution(
    {
      peer: run.self,
      run: run.id,
      key,
      schemaHash: manifest.schemaHash,
      weight: replicas,
      plan,
      vectors: { parameters: run.outer.parameters },
    },
    run.clock,
  )
  const result = await performRound(run.exchange, run.clock, {
    key,
    own,
    plan,
    partners: { group, candidates: [] },
    exact: true,
    staleness: 0,
    timeoutMs: MERGE_PATIENCE * manifest.limits.roundTimeoutMs,
    signal,
  })
  return result.contributions
}

/** Takes the mean over, and with it the measured consensus distance. Returns the replicas behind it. */
async function applyMean(
  run: ReadyRun,
  contributions: Contribution[],
  measure: boolean,
): Promise<number> {
  const vectors: Float32Array[] = []
  for (const contribution of contributions)
    vectors.push(await decodePart(contribution, 'parameters', run.clock))
  const weights = contributions.map(({ header }) => Math.min(header.weight, LIMITS.runPeers))
  const mean = weightedMean(vectors, weights)
  if (measure) {
    const squared =
      vectors.reduce((sum, vector) => sum + squaredDistance(vector, mean), 0) / vectors.length
    run.progress.consensusDistance = Math.sqrt(squared) / Math.max(norm(mean), Number.MIN_VALUE)
  }
  await run.commit
  run.outer.parameters.set(mean)
  return weights.reduce((sum, weight) => sum + weight, 0)
}
