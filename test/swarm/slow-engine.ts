/** The engine of a slow machine: it rests after every inner step. */
import { systemClock } from '../../src/clock.ts'
import type { Engine, InnerStepsResult, Trainer } from '../../src/run/trainer.ts'

export function createSlowEngine(engine: Engine, restMs: number): Engine {
  return {
    backend: engine.backend,
    async open(spec, parameters) {
      return slowTrainer(await engine.open(spec, parameters), spec.innerSteps, restMs)
    },
    close: async () => {},
  }
}

function slowTrainer(trainer: Trainer, innerSteps: number, restMs: number): Trainer {
  return {
    ...trainer,
    async innerSteps(outerStep, { from = 0, steps = innerSteps - from, enough, ...options } = {}) {
      const done: InnerStepsResult = { steps: 0, tokens: 0, loss: 0 }
      while (done.steps < steps) {
        if (done.steps > 0 && enough?.aborted === true) break
        const part = { ...options, from: from + done.steps, steps: 1 }
        const { tokens, loss } = await trainer.innerSteps(outerStep, part)
        done.steps++
        done.tokens += tokens
        done.loss += (loss - done.loss) / done.steps
        options.onProgress?.({ step: from + done.steps, loss: done.loss, tokens: done.tokens })
        await systemClock.sleep(restMs, options.signal)
      }
      return done
    },
  }
}
