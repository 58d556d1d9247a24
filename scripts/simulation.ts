/**
 * A swarm in one process: N peers with a trainer each, whose contributions are handed over in memory.
 *
 * All but the network is what a node runs: engine, sampler, partner choice, codecs, contributions, outer update. The
 * peers train one after the other, so that a simulation is the same bit by bit whatever else the machine does.
 */
import { createHash } from 'node:crypto'
import { systemClock } from '../src/clock.ts'
import { initialParameters } from '../src/model/initial-parameters.ts'
import { weightedMean } from '../src/optim/combine.ts'
import { consensusDistance } from '../src/optim/consensus.ts'
import type { OuterState } from '../src/optim/outer.ts'
import { contributionBytes, encodeHeader, type Contribution } from '../src/run/contribution.ts'
import type { Averaging } from '../src/run/manifest.ts'
import { applyRound, contributionOf, initialOuterState } from '../src/run/outer-update.ts'
import { groupsOf } from '../src/run/partners.ts'
import type { Engine, Trainer, TrainerSpec } from '../src/run/trainer.ts'
import { float32Bytes } from '../src/tensor/float32-bytes.ts'
import { schemaHash } from '../src/tensor/schema.ts'
import { subtract } from '../src/tensor/vector.ts'

/** What the swarms that are compared have in common. */
export type SimulationSetup = Omit<TrainerSpec, 'outerSteps' | 'streams' | 'seed'>

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
  /** Names the run: initial parameters, batches and groups follow from it. */
  seed: string
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
  /** Of the last inner steps. */
  tokens: number
}

/** Trains the swarm and measures it. Rejects with the signal's reason when aborted. */
export async function simulate(
  engine: Engine,
  setup: SimulationSetup,
  simulated: SimulationCase,
  { signal, onOuterStep }: SimulationOptions,
): Promise<Simulation> {
  const { method } = simulated
  const peers: SimulatedPeer[] = []
  try {
    const initial = initialParameters(setup.model, simulated.seed)
    for (const streams of streamsOf(simulated)) {
      const trainer = await openTrainer(engine, setup, simulated, streams, initial)
      const outer =
        method.kind === 'averaging'
          ? initialOuterState(method.averaging, initial.slice())
          : { parameters: initial.slice(), momentum: new Float32Array(initial.length) }
      peers.push({ name: streams.join(' '), trainer, outer, tokens: 0 })
    }
    let messageBytes = 0
    for (let outerStep = 0; outerStep < simulated.outerSteps; outerStep++) {
      for (const peer of peers) {
        peer.tokens = (await peer.trainer.innerSteps(outerStep, { signal })).tokens
      }
      if (method.kind === 'averaging') {
        messageBytes = await averageOnce(peers, method.averaging, simulated.seed, outerStep)
      }
      onOuterStep?.(outerStep + 1)
    }
    if (method.kind !== 'averaging') {
      for (const { trainer, outer } of peers) outer.parameters.set(await trainer.readParameters())
    }
    return {
      figures: { ...(await measure(peers, setup, signal)), messageBytes },
      replicas: peers.map(({ outer }) => outer.parameters),
    }
  } finally {
    await Promise.all(peers.map(({ trainer }) => trainer.close()))
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
  return engine.open({ ...setup, outerSteps, streams, seed }, parameters)
}

/** One round of the whole swarm. Returns the bytes of one peer's message. */
async function averageOnce(
  peers: readonly SimulatedPeer[],
  averaging: Averaging,
  run: string,
  outerStep: number,
): Promise<number> {
  const contributions = new Map<string, Contribution>()
  for (const peer of peers) {
    contributions.set(peer.name, await contribute(peer, averaging, run, outerStep))
  }
  const names = peers.map(({ name }) => name)
  const isAllReduce = averaging.rule === 'diloco'
  const groups = isAllReduce ? [names] : groupsOf(run, outerStep, names, averaging.groupSize)
  for (const peer of peers) {
    const group = groups.find((members) => members.includes(peer.name)) ?? [peer.name]
    const update = {
      averaging,
      outer: peer.outer,
      self: peer.name,
      contributions: [...group].sort().flatMap((name) => contributions.get(name) ?? []),
      swarm: peers.length,
    }
    await applyRound(update, systemClock)
    await peer.trainer.writeParameters(peer.outer.parameters)
  }
  return Math.max(...Array.from(contributions.values(), messageBytesOf))
}

async function contribute(
  { name, trainer, outer, tokens }: SimulatedPeer,
  averaging: Averaging,
  run: string,
  outerStep: number,
): Promise<Contribution> {
  const local = await trainer.readParameters()
  return contributionOf(
    {
      averaging,
      outer,
      peer: name,
      run,
      outerStep,
      schemaHash: schemaHash(trainer.schema),
      weight: tokens,
      pseudoGradient: subtract(outer.parameters, local),
    },
    systemClock,
  )
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
