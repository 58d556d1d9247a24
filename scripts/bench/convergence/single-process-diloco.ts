/**
 * DiLoCo (Douillard et al. 2023, arXiv 2311.08105, Algorithm 1) in one process, written from the paper as plainly as
 * possible: what the swarm with the whole swarm as group must equal. It shares the trainer with the simulation, and
 * none of the outer mathematics. With one worker it is SNOO.
 *
 *     Delta = 1/N * sum of (phi - theta_i);  b <- mu*b + Delta;  phi <- phi - eta*(Delta + mu*b)
 *
 * Vectors are float32, as PyTorch's are: with more digits here, training would blow the difference in the last one up
 * to some 1e-5 within five outer steps.
 */
import { initialParameters } from '../../../src/model/initial-parameters.ts'
import type { Engine, Trainer } from '../../../src/run/trainer.ts'
import { openTrainer, peerNames, type SimulationSetup } from './simulation.ts'

export interface SingleProcessCase {
  workers: number
  outerSteps: number
  seed: string
  /** eta */
  learningRate: number
  /** mu */
  momentum: number
}

/** Returns phi after the last outer step. */
export async function singleProcessDiloco(
  engine: Engine,
  setup: SimulationSetup,
  { workers, outerSteps, seed, learningRate, momentum }: SingleProcessCase,
  signal: AbortSignal,
): Promise<Float32Array> {
  const phi = initialParameters(setup.model, seed)
  const buffer = new Float32Array(phi.length)
  const delta = new Float32Array(phi.length)
  const { fround } = Math
  const eta = fround(learningRate)
  const mu = fround(momentum)
  const trainers: Trainer[] = []
  try {
    for (const worker of peerNames(workers)) {
      trainers.push(await openTrainer(engine, setup, { seed, outerSteps }, [worker], phi))
    }
    for (let outerStep = 0; outerStep < outerSteps; outerStep++) {
      const locals: Float32Array[] = []
      for (const trainer of trainers) {
        await trainer.innerSteps(outerStep, { signal })
        locals.push(await trainer.readParameters())
      }
      for (let i = 0; i < phi.length; i++) {
        delta[i] = locals.reduce((sum, theta) => sum + fround(phi[i]! - theta[i]!), 0) / workers
        buffer[i] = fround(mu * buffer[i]!) + delta[i]!
        const ahead = fround(delta[i]! + fround(mu * buffer[i]!))
        phi[i] = phi[i]! - fround(eta * ahead)
      }
      for (const trainer of trainers) await trainer.writeParameters(phi)
    }
    return phi
  } finally {
    await Promise.all(trainers.map((trainer) => trainer.close()))
  }
}
