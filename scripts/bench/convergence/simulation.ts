/**
 * A swarm in one process: N peers with a trainer each, whose contributions are handed over in memory.
 *
 * All but the network is what a node runs: engine, sampler, partner choice, codecs, contributions, outer update. The
 * peers train one after the other, so that a simulation is the same bit by bit whatever else the machine does.
 */
import { concatBytes } from '@noble/hashes/utils.js'
import { createHash } from 'node:crypto'
import { systemClock } from '../../../src/clock.ts'
import type { Dataset } from '../../../src/data/dataset.ts'
import { ShoalError } from '../../../src/errors.ts'
import { initialParameters } from '../../../src/model/initial-parameters.ts'
import { weightedMean } from '../../../src/optim/combine.ts'
import { consensusDistance } from '../../../src/optim/consensus.ts'
import { compactState } from '../../../src/optim/optimizer-state.ts'
import type { OuterState } from '../../../src/optim/outer.ts'
import { seededRandom } from '../../../src/random.ts'
import {
  contributionBytes,
  encodeHeader,
  joinContributions,
  type Contribution,
} from '../../../src/run/contribution.ts'
import { createDefence, type Defence } from '../../../src/run/defence.ts'
import { weightsOf } from '../../../src/run/early-weights.ts'
import type { Averaging } from '../../../src/run/manifest.ts'
import {
  applyRound,
  contributionOf,
  initialOuterState,
  type OwnUpdate,
} from '../../../src/run/outer-update.ts'
import {
  applyCorrection,
  exchangedRange,
  NO_WORK,
  overlapPlan,
  sendsWeightsEarly,
  type InnerWork,
} from '../../../src/run/overlap.ts'
import { shuffledMembers } from '../../../src/run/partners.ts'
import type { Engine, Trainer, TrainerSpec } from '../../../src/run/trainer.ts'
import { float32Bytes } from '../../../src/tensor/float32-bytes.ts'
import { schemaHash } from '../../../src/tensor/schema.ts'
import { scaleInPlace, subtract } from '../../../src/tensor/vector.ts'
import { simulateRound, type SimulatedRound } from './simulated-round.ts'

/** What the swarms that are compared have in common. */
export interface SimulationSetup extends Omit<TrainerSpec, 'outerSteps' | 'streams' | 'seed'> {
  /** Parts of the data that peers in turn train on in a case that is sharded. */
  shards?: readonly Dataset[]
}

/** Targets of the fixed held-out set that losses are measured on. */
const VALIDATION_TOKENS = 8192

export type Method =
  /** One model, whose every step averages the gradients of one batch of each peer. */
  | { kind: 'data-parallel' }
  /** No communication: every peer goes on from its own parameters. */
  | { kind: 'alone' }
  | { kind: 'averaging'; averaging: Averaging }

export interface SimulationCase {
  method: Method
  peers: number
  outerSteps: number
  /** Of one outer step; those of the setup when left out. */
  innerSteps?: number
  /** Names the run: initial parameters, batches and groups follow from it. */
  seed: string
  /** Whether each peer sees only one of the setup's shards. */
  sharded?: boolean
  /**
   * Probability that a peer fails in an outer step: what it has trained in it is lost, it is in nobody's group, and it
   * comes back as a newcomer with the parameters of another. At least one peer does not.
   *
   * As in the simulations that the bars were set with, groups are made of the living: a node learns of a peer that is gone
   * before the round, from the connection that ends. There newcomers take the donor's outer momentum over; in a gossip
   * run of ours they begin with none, but with the second moments of its inner optimizer.
   */
  churn?: number
  /** Peers that give their pseudo-gradient so many times, against its direction. What is measured leaves them out. */
  attackers?: { share: number; scale: number }
}

export interface SimulationFigures {
  /** Loss of the plain mean of the replicas, in nats per token. */
  merged: number
  replicaMean: number
  replicaWorst: number
  /** Consensus distance at the end. */
  drift: number
  parameters: number
  /** One peer's message of one round, header and chunks; 0 without messages. */
  messageBytes: number
  /** sha-256 over all replicas, in the order of the peers' names. */
  hash: string
}

export interface Simulation {
  figures: SimulationFigures
  /** Outer parameters of every peer. */
  replicas: Float32Array[]
}

export interface SimulationOptions {
  signal: AbortSignal
  onOuterStep?: (completed: number) => void
}

interface SimulatedPeer {
  name: string
  trainer: Trainer
  outer: OuterState
  /** Of the last outer step. */
  tokens: number
  /** Done of the next outer step beside the last round. */
  ahead: InnerWork
  /** What its pseudo-gradient is multiplied by for others: 1 of an honest peer. */
  honesty: number
  defence: Defence | undefined
}

/** Trains the swarm and measures it. Rejects with the signal's reason when aborted. */
export async function simulate(
  engine: Engine,
  setup: SimulationSetup,
  simulated: SimulationCase,
  { signal, onOuterStep }: SimulationOptions,
): Promise<Simulation> {
  const { method, innerSteps = setup.innerSteps } = simulated
  const common = { ...setup, innerSteps }
  const peers: SimulatedPeer[] = []
  try {
    const initial = initialParameters(setup.model, simulated.seed)
    for (const [index, streams] of streamsOf(simulated).entries()) {
      const dataset = simulated.sharded === true ? shardOf(setup, index) : setup.dataset
      const trainer = await openTrainer(engine, { ...common, dataset }, simulated, streams, initial)
      const outer =
        method.kind === 'averaging'
          ? initialOuterState(method.averaging, initial.slice())
          : { parameters: initial.slice(), momentum: new Float32Array(initial.length) }
      const self = streams.join(' ')
      const options = { self, secret: `${simulated.seed} ${self}`, clock: systemClock }
      const isRobust = method.kind === 'averaging' && method.averaging.defence === 'robust'
      const defence = isRobust ? createDefence(options) : undefined
      const honesty = attackersOf(simulated).has(self) ? -(simulated.attackers?.scale ?? 1) : 1
      const state = { outer, tokens: 0, ahead: NO_WORK }
      peers.push({ name: self, trainer, honesty, defence, ...state })
    }
    let messageBytes = 0
    for (let outerStep = 0; outerStep < simulated.outerSteps; outerStep++) {
      const alive = peersAlive(peers, simulated, outerStep)
      for (const peer of alive) {
        const { tokens, steps: from } = peer.ahead
        const done = await peer.trainer.innerSteps(outerStep, { from, signal })
        peer.tokens = tokens + done.tokens
        peer.ahead = NO_WORK
      }
      if (method.kind === 'averaging') {
        const { averaging } = method
        const round = { averaging, run: simulated.seed, outerStep, signal }
        const schedule = { averaging, innerSteps, outerSteps: simulated.outerSteps }
        messageBytes = await averageOnce(alive, round, schedule)
        await rejoin(peers, alive, round)
      }
      onOuterStep?.(outerStep + 1)
    }
    if (method.kind !== 'averaging') {
      for (const { trainer, outer } of peers) outer.parameters.set(await trainer.readParameters())
    }
    const honest = peers.filter(({ honesty }) => honesty === 1)
    return {
      figures: { ...(await measure(honest, setup, signal)), messageBytes },
      replicas: honest.map(({ outer }) => outer.parameters),
    }
  } finally {
    await Promise.all(peers.map(({ trainer }) => trainer.close()))
  }
}

function shardOf({ shards }: SimulationSetup, index: number): Dataset {
  const shard = shards?.[index % shards.length]
  if (shard === undefined) throw new ShoalError('internal', 'a sharded case needs shards')
  return shard
}

/** Names of the peers that lie. */
function attackersOf({ peers, seed, attackers }: SimulationCase): ReadonlySet<string> {
  const count = Math.round(peers * (attackers?.share ?? 0))
  return new Set(shuffledMembers(`attackers of ${seed}`, 0, peerNames(peers)).slice(0, count))
}

/** The peers that do not fail in the round of an outer step. */
function peersAlive(
  peers: readonly SimulatedPeer[],
  { churn = 0, seed }: SimulationCase,
  outerStep: number,
): readonly SimulatedPeer[] {
  if (churn === 0) return peers
  const random = seededRandom('churn', seed, outerStep)
  const alive = peers.filter(() => random.uniform() >= churn)
  const survivor = peers[random.integer(peers.length)]
  return alive.length > 0 || survivor === undefined ? alive : [survivor]
}

/** Those that have failed take over from another what a newcomer does; all else starts anew. */
async function rejoin(
  peers: readonly SimulatedPeer[],
  alive: readonly SimulatedPeer[],
  { averaging, run, outerStep }: Pick<SimulatedRound, 'averaging' | 'run' | 'outerStep'>,
): Promise<void> {
  const random = seededRandom('rejoin', run, outerStep)
  for (const peer of peers) {
    if (alive.includes(peer)) continue
    const donor = alive[random.integer(alive.length)]!
    peer.outer = initialOuterState(averaging, donor.outer.parameters.slice())
    // Where all peers share it, it is part of the checkpoint.
    if (averaging.rule === 'diloco') peer.outer.momentum.set(donor.outer.momentum)
    await peer.trainer.writeParameters(peer.outer.parameters)
    const moments = compactState(await donor.trainer.exportOptimizer(), peer.trainer.schema)
    await peer.trainer.importOptimizer(concatBytes(...moments))
    peer.ahead = NO_WORK
  }
}

export function peerNames(peers: number): string[] {
  return Array.from({ length: peers }, (_, index) => `peer-${String(index).padStart(2, '0')}`)
}

/** The sampler streams of each trainer. */
function streamsOf({ method, peers }: SimulationCase): string[][] {
  const names = peerNames(peers)
  return method.kind === 'data-parallel' ? [names] : names.map((name) => [name])
}

/** A trainer of one peer, or of several at once, that starts from `parameters`. */
export function openTrainer(
  engine: Engine,
  setup: SimulationSetup,
  { seed, outerSteps }: Pick<SimulationCase, 'seed' | 'outerSteps'>,
  streams: readonly string[],
  parameters: Float32Array,
): Promise<Trainer> {
  const { shards: _, ...spec } = setup
  return engine.open({ ...spec, outerSteps, streams, seed }, parameters)
}

interface Schedule {
  averaging: Averaging
  innerSteps: number
  outerSteps: number
}

/** One round of the peers that have not failed. Returns the bytes of one peer's message. */
async function averageOnce(
  alive: readonly SimulatedPeer[],
  round: Omit<SimulatedRound, 'members' | 'contributions'>,
  schedule: Schedule,
): Promise<number> {
  const { averaging, run, outerStep, signal } = round
  const elements = alive[0]?.outer.parameters.length ?? 0
  const range = exchangedRange(schedule, outerStep, elements)
  const given: Contribution[] = []
  const locals = new Map<string, Float32Array>()
  /** What attackers use for themselves. */
  const truths = new Map<string, Contribution>()
  for (const peer of alive) {
    const local = await peer.trainer.readParameters()
    locals.set(peer.name, local)
    const own = { averaging, run, outerStep, range }
    given.push(await contribute(peer, local, own, peer.honesty))
    if (peer.honesty !== 1) truths.set(peer.name, await contribute(peer, local, own, 1))
  }
  const members = alive.map(({ name }) => name)
  const combined = await simulateRound({ ...round, members, contributions: given })
  for (const peer of alive) {
    const { name, outer, trainer } = peer
    await trainAhead(peer, outerStep + 1, schedule, signal)
    const contributions = (combined.get(name) ?? []).map((each) =>
      each.peer === name ? (truths.get(name) ?? each) : each,
    )
    const evaluate: Trainer['evaluate'] = (evaluation) => trainer.evaluate(evaluation)
    const judging = { outer, outerStep, contributions, evaluate }
    const judged = await peer.defence?.judge(judging, signal)
    const update = { averaging, outer, self: name, swarm: alive.length, factors: judged?.factors }
    await applyRound({ ...update, contributions: judged?.accepted ?? contributions }, systemClock)
    const noted = locals.get(name) ?? outer.parameters
    const local = peer.ahead.steps === 0 ? noted : await trainer.readParameters()
    await applyCorrection({ noted, local, outer: outer.parameters, range }, systemClock)
    await trainer.writeParameters(local)
  }
  return Math.max(...given.map(messageBytesOf))
}

/** Inner steps of the next outer step, done while a round is under way. */
async function trainAhead(
  peer: SimulatedPeer,
  outerStep: number,
  schedule: Schedule,
  signal: AbortSignal,
): Promise<void> {
  const { steps } = overlapPlan(schedule, schedule.innerSteps)
  if (steps === 0 || outerStep >= schedule.outerSteps) return
  const done = await peer.trainer.innerSteps(outerStep, { from: 0, steps, signal })
  peer.ahead = { ...done, elapsedMs: 0 }
}

async function contribute(
  { name, trainer, outer, tokens }: SimulatedPeer,
  local: Float32Array,
  round: Pick<OwnUpdate, 'averaging' | 'run' | 'outerStep' | 'range'>,
  honesty: number,
): Promise<Contribution> {
  const own = { ...round, outer, peer: name, schemaHash: schemaHash(trainer.schema) }
  const weights = sendsWeightsEarly(round.averaging)
    ? await weightsOf({ ...own, parameters: outer.parameters }, systemClock)
    : undefined
  const pseudoGradient = subtract(outer.parameters, local)
  if (honesty !== 1) scaleInPlace(pseudoGradient, honesty)
  const given = await contributionOf({ ...own, weight: tokens, pseudoGradient }, systemClock)
  return weights === undefined ? given : joinContributions(given, weights)
}

function messageBytesOf({ header, plan }: Contribution): number {
  return encodeHeader(header).length + contributionBytes(plan)
}

async function measure(
  peers: readonly SimulatedPeer[],
  { batchSequences, model }: SimulationSetup,
  signal: AbortSignal,
): Promise<Omit<SimulationFigures, 'messageBytes'>> {
  const batches = Math.ceil(VALIDATION_TOKENS / (batchSequences * model.context))
  const replicas = peers.map(({ outer }) => outer.parameters)
  const lossOf = async (parameters: Float32Array): Promise<number> =>
    (await peers[0]!.trainer.evaluate({ parameters, batches, signal })).loss
  const losses: number[] = []
  for (const replica of replicas) losses.push(await lossOf(replica))
  const hash = createHash('sha256')
  for (const replica of replicas) hash.update(float32Bytes(replica))
  return {
    merged: await lossOf(weightedMean(replicas)),
    replicaMean: losses.reduce((sum, loss) => sum + loss, 0) / losses.length,
    replicaWorst: Math.max(...losses),
    drift: consensusDistance(replicas),
    parameters: replicas[0]!.length,
    hash: hash.digest('hex'),
  }
}
