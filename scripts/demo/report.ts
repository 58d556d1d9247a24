/** What the demo has measured, for people and as JSON. */
import { bytes, duration, integer } from '../../node/cli/format.ts'
import type { RunView } from '../../src/run/view.ts'
import type { Evaluation } from './evaluation.ts'
import type { PeerFrame } from './swarm.ts'

export interface DemoResult {
  peers: number
  outerSteps: number
  /** Of all peers together. */
  tokens: number
  /** Validation losses, nats per token. */
  lossStart: number
  lossMerged: number
  /** Only with `--baselines`: one node alone with the same tokens per peer. */
  lossAlone?: number
  /** Only with `--baselines`: synchronous data parallel with the same tokens in total. */
  lossDataParallel?: number
  /** Root mean square distance of the replicas from their mean before the merge, by the norm of the mean. */
  consensusDistance: number
  /** Mean over peers of all bytes written to connections: weights, data, rounds, DHT and state included. */
  bytesSentPerPeer: number
  bytesDataParallelPerPeer: number
  /** From the start of the first daemon to the end of the merge. */
  wallSeconds: number
}

/**
 * Bytes that each peer sends when gradients are summed by a ring all-reduce in fp32 (Patarasuk and Yuan 2009) after
 * every inner step: N - 1 pieces of 1/N of the vector to reduce, as many to gather.
 */
export function ringDataParallelBytes({
  peers,
  parameters,
  innerSteps,
}: {
  peers: number
  parameters: number
  innerSteps: number
}): number {
  return ((2 * (peers - 1)) / peers) * 4 * parameters * innerSteps
}

/** `frames` are the peers' last, `batchTokens` what one peer trains on in one inner step. */
export function demoResult(
  frames: readonly PeerFrame[],
  losses: Evaluation['losses'],
  { batchTokens, elapsedMs }: { batchTokens: number; elapsedMs: number },
): DemoResult {
  const peers = frames.length
  const views = frames.map(({ run }) => run)
  const { parameters, outerSteps } = runOf(frames)
  const tokens = sum(views.map((view) => view.tokens))
  const innerSteps = innerStepsOf({ tokens, peers }, batchTokens)
  return {
    peers,
    outerSteps,
    tokens,
    lossStart: losses.start,
    lossMerged: losses.merged,
    ...(losses.baselines && {
      lossAlone: losses.baselines.alone,
      lossDataParallel: losses.baselines.dataParallel,
    }),
    consensusDistance: Math.max(...views.map(({ consensusDistance }) => consensusDistance ?? 0)),
    bytesSentPerPeer: Math.round(sum(frames.map(({ bytesSent }) => bytesSent)) / peers),
    bytesDataParallelPerPeer: ringDataParallelBytes({ peers, parameters, innerSteps }),
    wallSeconds: Math.round(elapsedMs / 100) / 10,
  }
}

/** Share of the gap between training alone and data parallel that the swarm closed. */
export function gapClosed(alone: number, merged: number, dataParallel: number): number {
  return (alone - merged) / (alone - dataParallel)
}

export function reportLines(
  result: DemoResult,
  frames: readonly PeerFrame[],
  batchTokens: number,
): string[] {
  const { peers, outerSteps, tokens, wallSeconds } = result
  const { innerSteps, parameters } = runOf(frames)
  const hashes = new Set(frames.map(({ run }) => run.parametersHash))
  const agreed =
    hashes.size === 1
      ? `after it all peers hold the same parameters (sha-256 ${[...hashes][0]?.slice(0, 12)}…)`
      : `after it the peers hold ${hashes.size} different sets of parameters`
  const ratio = result.bytesDataParallelPerPeer / result.bytesSentPerPeer
  return [
    `${peers} peers, ${outerSteps} outer steps of ${innerSteps} inner steps, ${integer(tokens)} tokens, ${duration(1000 * wallSeconds)}`,
    `consensus distance ${result.consensusDistance.toFixed(4)} before the final merge; ${agreed}`,
    '',
    'validation loss, nats per token',
    `  initial weights  ${result.lossStart.toFixed(4)}`,
    `  merged model     ${result.lossMerged.toFixed(4)}`,
    ...baselineLines(result),
    '',
    'bytes sent per peer',
    `  this swarm             ${bytes(result.bytesSentPerPeer)}, weights, data, rounds, DHT and state included`,
    `  fp32 ring all-reduce   ${bytes(result.bytesDataParallelPerPeer)}, ${ratio.toFixed(0)} times as much`,
    `    2(N - 1)/N x 4 B x parameters x inner steps = 2 x ${peers - 1}/${peers} x 4 x ${integer(parameters)} x ${integer(innerStepsOf(result, batchTokens))}`,
  ]
}

function baselineLines(result: DemoResult): string[] {
  const { lossAlone, lossMerged, lossDataParallel } = result
  if (lossAlone === undefined || lossDataParallel === undefined) return []
  const closed = gapClosed(lossAlone, lossMerged, lossDataParallel)
  return [
    `  one node alone   ${lossAlone.toFixed(4)}, as many tokens as each peer`,
    `  data parallel    ${lossDataParallel.toFixed(4)}, as many tokens as all peers, gradients averaged at every inner step`,
    `  the swarm closed ${(100 * closed).toFixed(0)} % of the gap between the two`,
  ]
}

function runOf(frames: readonly PeerFrame[]): RunView {
  const frame = frames[0]
  if (frame === undefined) throw new Error('a swarm has at least one peer')
  return frame.run
}

/** Inner steps that a peer has done, on average: who is late does fewer in a round. */
function innerStepsOf(
  { tokens, peers }: Pick<DemoResult, 'tokens' | 'peers'>,
  batchTokens: number,
): number {
  return Math.round(tokens / (peers * batchTokens))
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
