/**
 * Runs simulations on a few engines at once, each once: whoever asks for the same one gets the same promise.
 *
 * An engine does one simulation at a time and trains its peers in order, so figures do not depend on the number of
 * engines or on who asks first.
 */
import { createEngine } from '../../../node/engine/engine.ts'
import type { Engine } from '../../../src/run/trainer.ts'
import {
  simulate,
  type SimulationCase,
  type SimulationFigures,
  type SimulationSetup,
} from './simulation.ts'

/** A simulation without its seed; two of one name are the same. */
export interface SwarmCase extends Omit<SimulationCase, 'seed'> {
  name: string
}

export interface FinishedSimulation extends SimulationFigures {
  name: string
  seed: string
  seconds: number
}

export type EngineWork<T> = (engine: Engine, signal: AbortSignal) => Promise<T>

export interface SimulationPool {
  readonly backend: string
  readonly setup: SimulationSetup
  /** Every simulation that has ended, in that order. */
  readonly finished: readonly FinishedSimulation[]
  /** The figures of a case for every seed. */
  figures(swarm: SwarmCase): Promise<SimulationFigures[]>
  /** Does `work` with an engine of its own. */
  withEngine<T>(work: EngineWork<T>): Promise<T>
  /** Waits for all that was asked for: abort it first when nobody wants it any more. */
  close(): Promise<void>
}

export interface SimulationPoolOptions {
  setup: SimulationSetup
  seeds: readonly string[]
  /** Simulations at once. */
  engines: number
  signal: AbortSignal
  onProgress: (progress: PoolProgress) => void
}

export interface PoolProgress {
  /** Inner steps of all peers, of all simulations asked for so far. */
  steps: number
  totalSteps: number
  finished?: FinishedSimulation
}

export async function createSimulationPool(
  options: SimulationPoolOptions,
): Promise<SimulationPool> {
  const { setup, seeds, signal, onProgress } = options
  const engines = await createEngines(options.engines)
  const idle = [...engines]
  const waiting: ((engine: Engine) => void)[] = []
  const asked: Promise<unknown>[] = []
  const started = new Map<string, Promise<SimulationFigures[]>>()
  const finished: FinishedSimulation[] = []
  const progress: PoolProgress = { steps: 0, totalSteps: 0 }

  function withEngine<T>(work: EngineWork<T>): Promise<T> {
    const result = whenIdle(work)
    asked.push(result)
    return result
  }

  async function whenIdle<T>(work: EngineWork<T>): Promise<T> {
    const engine =
      idle.shift() ?? (await new Promise<Engine>((resolve) => void waiting.push(resolve)))
    try {
      signal.throwIfAborted()
      return await work(engine, signal)
    } finally {
      const next = waiting.shift()
      if (next === undefined) idle.push(engine)
      else next(engine)
    }
  }

  async function runOnce(swarm: SwarmCase, seed: string): Promise<SimulationFigures> {
    const stepsEach = (swarm.innerSteps ?? setup.innerSteps) * swarm.peers
    progress.totalSteps += stepsEach * swarm.outerSteps
    return withEngine(async (engine) => {
      const startedMs = performance.now()
      const simulated = { ...swarm, seed }
      const onOuterStep = (): void => {
        progress.steps += stepsEach
        onProgress({ ...progress })
      }
      const { figures } = await simulate(engine, setup, simulated, { signal, onOuterStep })
      const seconds = (performance.now() - startedMs) / 1000
      const entry = { name: swarm.name, seed, ...figures, seconds }
      finished.push(entry)
      onProgress({ ...progress, finished: entry })
      return figures
    })
  }

  return {
    backend: engines[0]?.backend ?? '',
    setup,
    finished,
    withEngine,
    figures(swarm) {
      const figures =
        started.get(swarm.name) ?? Promise.all(seeds.map((seed) => runOnce(swarm, seed)))
      started.set(swarm.name, figures)
      return figures
    },
    close: async () => {
      await Promise.allSettled(asked)
      await Promise.all(engines.map((engine) => engine.close()))
    },
  }
}

/** Each with one thread: the engines themselves fill the cores. */
async function createEngines(count: number): Promise<Engine[]> {
  const engines: Engine[] = []
  try {
    while (engines.length < count) engines.push(await createEngine({ threads: 1 }))
    return engines
  } catch (fault) {
    await Promise.all(engines.map((engine) => engine.close()))
    throw fault
  }
}
