import type { Worker } from 'node:worker_threads'
import { afterAll, describe, expect, test } from 'vitest'
import { createEngine } from '../../../../node/engine/engine.ts'
import { ShoalError } from '../../../../src/errors.ts'
import type { InnerStepsProgress, Trainer, TrainerSpec } from '../../../../src/run/trainer.ts'
import { isFiniteVector, norm, subtract } from '../../../../src/tensor/vector.ts'
import { tinyParameters, tinySpec } from './tiny-trainer.ts'

const native = await createEngine({ backend: 'native', threads: 1 })
const twoThreads = await createEngine({ backend: 'native', threads: 2 })
const wasm = await createEngine({ backend: 'wasm', threads: 1 })
afterAll(async () => {
  await Promise.all([native.close(), twoThreads.close(), wasm.close()])
})

/** Parameters after some outer steps, and the trainer closed. */
async function train(
  engine: typeof native,
  spec: TrainerSpec = tinySpec,
  outerSteps = 2,
): Promise<{ parameters: Float32Array; losses: number[]; evaluation: number }> {
  const trainer = await engine.open(spec, tinyParameters)
  const losses: number[] = []
  for (let outerStep = 0; outerStep < outerSteps; outerStep += 1) {
    losses.push((await trainer.innerSteps(outerStep)).loss)
  }
  const { loss } = await trainer.evaluate({ batches: 4 })
  const parameters = await trainer.readParameters()
  await trainer.close()
  return { parameters, losses, evaluation: loss }
}

async function withTrainer(
  work: (trainer: Trainer) => Promise<void>,
  spec: TrainerSpec = tinySpec,
): Promise<void> {
  const trainer = await native.open(spec, tinyParameters)
  try {
    await work(trainer)
  } finally {
    await trainer.close()
  }
}

describe('training', () => {
  test('learns the text', async () => {
    await withTrainer(async (trainer) => {
      const before = await trainer.evaluate()
      expect(before.loss).toBeGreaterThan(3)
      expect(before.tokens).toBe(16 * 8 * 16)
      for (let outerStep = 0; outerStep < 20; outerStep += 1) {
        const { steps, tokens, loss } = await trainer.innerSteps(outerStep)
        expect({ steps, tokens }).toEqual({ steps: 10, tokens: 10 * 8 * 16 })
        expect(loss).toBeGreaterThan(0)
      }
      // Three repeated lines: far below the 2.9 nats of their letters' frequencies.
      expect((await trainer.evaluate()).loss).toBeLessThan(0.5)
    })
  })

  test('gives the same bits again, in another trainer at the same time, and on two threads', async () => {
    const [first, second] = await Promise.all([train(native), train(native)])
    const third = await train(twoThreads)
    expect(second).toEqual(first)
    expect(third).toEqual(first)
    expect(first.parameters).not.toEqual(tinyParameters)
  })

  test('by WebAssembly gives the same bits again, and within 1e-5 those of the native build', async () => {
    const nativeResult = await train(native)
    const [first, second] = [await train(wasm), await train(wasm)]
    expect(second).toEqual(first)
    expect(Math.abs(first.evaluation - nativeResult.evaluation)).toBeLessThan(1e-5)
    const moved = norm(subtract(nativeResult.parameters, tinyParameters))
    const apart = norm(subtract(first.parameters, nativeResult.parameters))
    // AdamW divides by the root of the second moment: what is noise in a gradient near zero is amplified.
    expect(apart / moved).toBeLessThan(1e-3)
  })

  test('streams draw different batches, and several average their gradients', async () => {
    const one = await train(native, { ...tinySpec, streams: ['a'] })
    const other = await train(native, { ...tinySpec, streams: ['b'] })
    const same = await train(native, { ...tinySpec, streams: ['a', 'a'] })
    const both = await train(native, { ...tinySpec, streams: ['a', 'b'] })
    const swapped = await train(native, { ...tinySpec, streams: ['b', 'a'] })
    expect(other.parameters).not.toEqual(one.parameters)
    expect(same.parameters).toEqual(one.parameters)
    expect(swapped.parameters).toEqual(both.parameters)
    expect(both.parameters).not.toEqual(one.parameters)
    expect(both.losses[0]).toBeCloseTo((one.losses[0]! + other.losses[0]!) / 2, 0)
  })

  test('several streams count their tokens', async () => {
    await withTrainer(
      async (trainer) => {
        expect((await trainer.innerSteps(0)).tokens).toBe(10 * 3 * 8 * 16)
      },
      { ...tinySpec, streams: ['a', 'b', 'c'] },
    )
  })

  test('reports progress no more than ten times a second', async () => {
    const reports: (InnerStepsProgress & { at: number })[] = []
    const controller = new AbortController()
    const onProgress = (progress: InnerStepsProgress): void => {
      reports.push({ ...progress, at: performance.now() })
      if (reports.length === 5) controller.abort()
    }
    await withTrainer(
      async (trainer) => {
        const running = trainer.innerSteps(0, { signal: controller.signal, onProgress })
        await expect(running).rejects.toMatchObject({ code: 'aborted' })
      },
      { ...tinySpec, innerSteps: 100_000, outerSteps: 1 },
    )
    // Four intervals of 100 ms, less what the messages' own delay varies by.
    expect(reports[4]!.at - reports[0]!.at).toBeGreaterThan(300)
    for (const { step, tokens, loss } of reports) {
      expect(tokens).toBe(step * 8 * 16)
      expect(loss).toBeGreaterThan(0)
    }
  })

  test('that diverges is told, and leaves finite parameters', async () => {
    const inner = { ...tinySpec.inner, learningRate: 1, weightDecay: 0, warmupSteps: 0 }
    await withTrainer(
      async (trainer) => {
        await trainer.writeParameters(tinyParameters.map((value) => value * 1e38))
        await expect(trainer.innerSteps(0)).rejects.toMatchObject({
          code: 'engine_failed',
          message: expect.stringContaining('lower the inner learning rate'),
        })
        expect(isFiniteVector(await trainer.readParameters())).toBe(true)
      },
      { ...tinySpec, inner },
    )
  })
})

describe('a part of an outer step', () => {
  test('and the rest of it make the whole, bit by bit', async () => {
    const whole = await train(native, tinySpec, 1)
    await withTrainer(async (trainer) => {
      const first = await trainer.innerSteps(0, { steps: 4 })
      const rest = await trainer.innerSteps(0, { from: 4 })
      expect([first, rest]).toMatchObject([
        { steps: 4, tokens: 4 * 8 * 16 },
        { steps: 6, tokens: 6 * 8 * 16 },
      ])
      expect(await trainer.readParameters()).toEqual(whole.parameters)
      expect((4 * first.loss + 6 * rest.loss) / 10).toBeCloseTo(whole.losses[0]!, 9)
    })
  })

  test('is what was done when it is enough; at least one step is', async () => {
    const long = { ...tinySpec, innerSteps: 100_000, outerSteps: 1 }
    await withTrainer(async (trainer) => {
      const enough = new AbortController()
      const { steps, tokens } = await trainer.innerSteps(0, {
        enough: enough.signal,
        onProgress: () => enough.abort(),
      })
      expect(steps).toBeGreaterThanOrEqual(1)
      expect(steps).toBeLessThan(100_000)
      expect(tokens).toBe(steps * 8 * 16)
      const single = await trainer.innerSteps(0, { enough: AbortSignal.abort() })
      expect(single).toMatchObject({ steps: 1, tokens: 8 * 16 })
      expect(await trainer.innerSteps(0, { steps: 0 })).toEqual({ steps: 0, tokens: 0, loss: 0 })
    }, long)
  })
})

describe('parameters and evaluation', () => {
  test('read gives a copy of what was written, evaluate changes nothing', async () => {
    await withTrainer(async (trainer) => {
      expect(await trainer.readParameters()).toEqual(tinyParameters)
      const copy = await trainer.readParameters()
      copy.fill(0)
      expect(await trainer.readParameters()).toEqual(tinyParameters)

      const others = tinyParameters.map((value) => value * 3)
      const ofOthers = await trainer.evaluate({ parameters: others, batches: 3 })
      const ofLocal = await trainer.evaluate({ batches: 3 })
      expect(await trainer.readParameters()).toEqual(tinyParameters)
      expect(ofOthers).not.toEqual(ofLocal)
      await trainer.writeParameters(others)
      expect(await trainer.readParameters()).toEqual(others)
      expect(await trainer.evaluate({ batches: 3 })).toEqual(ofOthers)
    })
  })

  test('of another size are refused', async () => {
    const short = tinyParameters.subarray(1)
    const refusal = { code: 'schema_mismatch' }
    await expect(native.open(tinySpec, short)).rejects.toMatchObject(refusal)
    await withTrainer(async (trainer) => {
      await expect(trainer.writeParameters(short)).rejects.toMatchObject(refusal)
      await expect(trainer.evaluate({ parameters: short })).rejects.toMatchObject(refusal)
      expect(await trainer.readParameters()).toEqual(tinyParameters)
    })
  })

  test('tokens beyond the vocabulary are refused', async () => {
    const tokens = Uint16Array.from(tinySpec.dataset.train)
    tokens[100] = tinySpec.model.vocabulary
    const spec = { ...tinySpec, dataset: { ...tinySpec.dataset, train: tokens } }
    await expect(native.open(spec, tinyParameters)).rejects.toMatchObject({ code: 'data_unusable' })
  })
})

describe('the inner optimizer', () => {
  test('goes on where its export left off', async () => {
    const whole = await train(native, tinySpec, 4)
    const first = await native.open(tinySpec, tinyParameters)
    for (const outerStep of [0, 1]) await first.innerSteps(outerStep)
    const parameters = await first.readParameters()
    const state = await first.exportOptimizer()
    await first.close()
    const second = await native.open(tinySpec, parameters)
    await second.importOptimizer(state)
    expect(await second.exportOptimizer()).toEqual(state)
    for (const outerStep of [2, 3]) await second.innerSteps(outerStep)
    expect(await second.readParameters()).toEqual(whole.parameters)
    await second.close()
  })

  test('refuses a state of another model and keeps its own', async () => {
    await withTrainer(async (trainer) => {
      await trainer.innerSteps(0)
      const state = await trainer.exportOptimizer()
      await expect(trainer.importOptimizer(state.subarray(4))).rejects.toMatchObject({
        code: 'state_corrupt',
      })
      expect(await trainer.exportOptimizer()).toEqual(state)
    })
  })
})

describe('aborting', () => {
  const long = { ...tinySpec, innerSteps: 100_000, outerSteps: 1 }

  test('stops after the current step with the reason of the signal', async () => {
    await withTrainer(async (trainer) => {
      const reason = new ShoalError('timeout', 'enough')
      const controller = new AbortController()
      const running = trainer.innerSteps(0, {
        signal: controller.signal,
        onProgress: () => controller.abort(reason),
      })
      await expect(running).rejects.toBe(reason)
      // It stands: nothing goes on behind the caller's back, and the trainer is usable.
      const after = await trainer.readParameters()
      expect(after).not.toEqual(tinyParameters)
      await new Promise((resolve) => setTimeout(resolve, 50))
      expect(await trainer.readParameters()).toEqual(after)
      await trainer.evaluate({ batches: 1 })
    }, long)
  })

  test('by WebAssembly too, which computes without yielding', async () => {
    const trainer = await wasm.open(long, tinyParameters)
    const signal = AbortSignal.timeout(200)
    await expect(trainer.innerSteps(0, { signal })).rejects.toMatchObject({ code: 'aborted' })
    await trainer.close()
  })

  test('before the start does nothing', async () => {
    await withTrainer(async (trainer) => {
      const signal = AbortSignal.abort()
      await expect(trainer.innerSteps(0, { signal })).rejects.toMatchObject({ code: 'aborted' })
      await expect(trainer.evaluate({ signal })).rejects.toMatchObject({ code: 'aborted' })
      expect(await trainer.readParameters()).toEqual(tinyParameters)
    })
  })

  test('closing a trainer ends its steps, leaves the others alone', async () => {
    const trainer = await native.open(long, tinyParameters)
    const running = trainer.innerSteps(0)
    const other = train(native)
    await Promise.all([
      expect(running).rejects.toMatchObject({ code: 'aborted', message: 'the trainer was closed' }),
      trainer.close(),
    ])
    await trainer.close()
    await expect(trainer.readParameters()).rejects.toMatchObject({ code: 'engine_failed' })
    expect((await other).losses).toHaveLength(2)
  })
})

describe('the worker', () => {
  test('that is lost fails what is pending; the next open starts another', async () => {
    const workers: Worker[] = []
    const onWorker = (worker: Worker): number => workers.push(worker)
    process.on('worker', onWorker)
    const engine = await createEngine({ backend: 'native', threads: 1 })
    const trainer = await engine.open({ ...tinySpec, innerSteps: 100_000 }, tinyParameters)
    const lost = expect(trainer.innerSteps(0)).rejects.toMatchObject({ code: 'engine_failed' })
    const queued = expect(trainer.readParameters()).rejects.toMatchObject({ code: 'engine_failed' })
    await workers[0]!.terminate()
    await Promise.all([lost, queued])
    await expect(trainer.readParameters()).rejects.toMatchObject({ code: 'engine_failed' })
    await trainer.close()
    expect((await train(engine)).losses).toHaveLength(2)
    expect(workers).toHaveLength(2)
    process.off('worker', onWorker)
    await engine.close()
  })

  test('is gone after close, which may come twice and in the middle of work', async () => {
    const workers: Worker[] = []
    const onWorker = (worker: Worker): number => workers.push(worker)
    process.on('worker', onWorker)
    const engine = await createEngine({ backend: 'native', threads: 1 })
    process.off('worker', onWorker)
    const trainer = await engine.open({ ...tinySpec, innerSteps: 100_000 }, tinyParameters)
    const aborted = expect(trainer.innerSteps(0)).rejects.toMatchObject({ code: 'aborted' })
    await Promise.all([engine.close(), engine.close(), aborted])
    expect(workers[0]!.threadId).toBe(-1)
    await expect(engine.open(tinySpec, tinyParameters)).rejects.toMatchObject({
      code: 'engine_failed',
    })
    await expect(trainer.innerSteps(1)).rejects.toMatchObject({ code: 'engine_failed' })
    await trainer.close()
  })
})
