import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { ShoalError } from '../../../src/errors.ts'
import { createOutsideTrainer } from '../../../src/run/outside-trainer.ts'
import type { LocalStep, OutsideTrainer } from '../../../src/run/outside-trainer.ts'
import type { InnerStepsOptions, InnerStepsProgress } from '../../../src/run/trainer.ts'
import { createSchema } from '../../../src/tensor/schema.ts'
import { createManualClock } from '../../manual-clock.ts'

const schema = createSchema([{ name: 'w', shape: [3], decay: false }])
const start = Float32Array.of(1, 2, 3)
const never = new AbortController().signal

async function begun(outerStep = 0, silentMs?: number): Promise<OutsideTrainer> {
  const trainer = createOutsideTrainer({ schema, clock: systemClock, silentMs })
  const round = null
  await trainer.begin({ outerStep, parameters: start }, { evaluate: undefined, round })
  return trainer
}

const step = (outerStep: number): LocalStep => ({ outerStep, tokens: 10, loss: 2, innerSteps: 5 })
const writes =
  (...values: number[]) =>
  async (target: Float32Array): Promise<void> =>
    target.set(values)
const unread = async (): Promise<void> => {
  throw new Error('must not be read')
}

/** What a run does with its trainer for one outer step: adds 1 to what the script made of the parameters. */
async function runStep(
  trainer: OutsideTrainer,
  outerStep: number,
  options: InnerStepsOptions = {},
): Promise<void> {
  const { tokens } = await trainer.innerSteps(outerStep, options)
  expect(tokens).toBe(10)
  const local = await trainer.readParameters()
  await trainer.writeParameters(local.map((value) => value + 1))
  local.fill(Number.NaN)
  const round = { outerStep, outcome: 'averaged', partners: ['p'], consensusDistance: 0.5 } as const
  trainer.settle(outerStep + 1, round)
}

describe('an outside trainer', () => {
  test('takes outer parameters, gives local ones, gets the next', async () => {
    const trainer = await begun()
    const { script } = trainer
    const first = await script.parameters(never)
    expect(first).toEqual({ outerStep: 0, parameters: start })
    const running = runStep(trainer, 0)
    const result = await script.outerStep(step(0), writes(10, 20, 30), never)
    await running
    expect(result).toEqual({
      outerStep: 0,
      nextOuterStep: 1,
      outcome: 'averaged',
      partners: ['p'],
      consensusDistance: 0.5,
      parameters: Float32Array.of(11, 21, 31),
    })
    // What is being sent to a slow reader does not change under its hands.
    expect(first.parameters).toEqual(start)
    expect(await script.parameters(never)).toMatchObject({ outerStep: 1 })
  })

  test('a step that is repeated gets its result again, and is not read', async () => {
    const trainer = await begun()
    const running = runStep(trainer, 0)
    const result = await trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    await running
    expect(await trainer.script.outerStep(step(0), unread, never)).toEqual(result)
  })

  test('a step that is repeated after a restart of the node gets its result too', async () => {
    const trainer = createOutsideTrainer({ schema, clock: systemClock })
    const round = {
      outerStep: 6,
      outcome: 'averaged',
      partners: ['p'],
      consensusDistance: 0,
    } as const
    const repeated = trainer.script.outerStep(step(6), unread, never)
    await trainer.begin({ outerStep: 7, parameters: start }, { evaluate: undefined, round })
    expect(await repeated).toEqual({ ...round, nextOuterStep: 7, parameters: start })
  })

  test('a step that is repeated during its round waits for the same result', async () => {
    const trainer = await begun()
    const asked = trainer.innerSteps(0)
    const first = trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    await asked
    const second = trainer.script.outerStep(step(0), unread, never)
    const parameters = trainer.script.parameters(never)
    await trainer.writeParameters(Float32Array.of(4, 4, 4))
    const round = { outerStep: 0, outcome: 'solo', partners: [], consensusDistance: null } as const
    trainer.settle(1, round)
    expect(await first).toEqual(await second)
    expect(await parameters).toMatchObject({ outerStep: 1, parameters: Float32Array.of(4, 4, 4) })
  })

  test('a step whose reading fails may be handed in again', async () => {
    const trainer = await begun()
    const running = runStep(trainer, 0)
    const broken = trainer.script.outerStep(step(0), unread, never)
    await expect(broken).rejects.toThrow('must not be read')
    const result = await trainer.script.outerStep(step(0), writes(1, 2, 3), never)
    await running
    expect(result.parameters).toEqual(Float32Array.of(2, 3, 4))
  })

  test('steps of the past and of the future are refused with the step the run is at', async () => {
    const trainer = await begun(4)
    const asked = trainer.innerSteps(4)
    for (const other of [0, 3, 5]) {
      await expect(trainer.script.outerStep(step(other), unread, never)).rejects.toMatchObject({
        code: 'conflict',
        details: { outerStep: 4 },
      })
    }
    const taken = trainer.script.outerStep(step(4), writes(1, 1, 1), never)
    await asked
    await expect(trainer.script.outerStep(step(5), unread, never)).rejects.toMatchObject({
      code: 'conflict',
    })
    trainer.end(new ShoalError('aborted', 'the run was stopped on this node'))
    await expect(taken).rejects.toMatchObject({
      code: 'aborted',
      message: 'the run was stopped on this node',
    })
  })

  test.each([
    ['after a time apart the run goes on where the swarm is', 'stale', 20],
    ['a step that the run goes back to is done anew', 'solo', 0],
  ] as const)('%s', async (_, outcome, nextOuterStep) => {
    const trainer = await begun()
    const asked = trainer.innerSteps(0)
    const result = trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    await asked
    const round = { outerStep: 0, outcome, partners: [], consensusDistance: null }
    trainer.settle(nextOuterStep, round)
    expect(await result).toMatchObject({ outerStep: 0, nextOuterStep, outcome })
    const next = runStep(trainer, nextOuterStep)
    const given = trainer.script.outerStep(step(nextOuterStep), writes(0, 0, 0), never)
    expect(await given).toMatchObject({ nextOuterStep: nextOuterStep + 1 })
    await next
  })

  test('a step whose round was lost by a fault of the run may be handed in again', async () => {
    const trainer = await begun()
    const asked = trainer.innerSteps(0)
    const lost = trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    await asked
    const nothing = { evaluate: undefined, round: null }
    await trainer.begin({ outerStep: 0, parameters: start }, nothing)
    await expect(lost).rejects.toMatchObject({ code: 'conflict', details: { outerStep: 0 } })
    const running = runStep(trainer, 0)
    const result = await trainer.script.outerStep(step(0), writes(1, 2, 3), never)
    await running
    expect(result.parameters).toEqual(Float32Array.of(2, 3, 4))
  })

  test('a run that begins anew while a step is being read takes it no more', async () => {
    const trainer = await begun()
    const asked = trainer.innerSteps(0)
    const entered = Promise.withResolvers<void>()
    const reading = Promise.withResolvers<void>()
    const read = (): Promise<void> => {
      entered.resolve()
      return reading.promise
    }
    const lost = trainer.script.outerStep(step(0), read, never)
    await entered.promise
    await trainer.begin({ outerStep: 0, parameters: start }, { evaluate: undefined, round: null })
    reading.resolve()
    await expect(lost).rejects.toMatchObject({ code: 'conflict' })
    trainer.end(new ShoalError('aborted', 'stop'))
    asked.catch(() => {})
  })

  test('asked for the rest of a step that was handed in as a whole, there is none', async () => {
    const trainer = await begun()
    const asked = trainer.innerSteps(0)
    const result = trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    expect(await asked).toEqual({ steps: 5, tokens: 10, loss: 2 })
    expect(await trainer.innerSteps(0, { from: 5 })).toEqual({ steps: 0, tokens: 0, loss: 2 })
    const round = { outerStep: 0, outcome: 'solo', partners: [], consensusDistance: null } as const
    trainer.settle(1, round)
    await result
  })

  test('a finished run gives its parameters and takes no more steps', async () => {
    const trainer = await begun(7)
    trainer.end()
    const { script } = trainer
    expect(await script.parameters(never)).toEqual({ outerStep: 7, parameters: start })
    await expect(script.outerStep(step(7), unread, never)).rejects.toThrow('the run is finished')
  })

  test('a script that waits for a run that is not ready is told when the run fails', async () => {
    const trainer = createOutsideTrainer({ schema, clock: systemClock })
    const waiting = trainer.script.parameters(never)
    trainer.end(new ShoalError('data_unusable', 'no text'))
    await expect(waiting).rejects.toMatchObject({ code: 'conflict' })
    await expect(waiting).rejects.toThrow('no text')
  })

  test('waits end with their signal', async () => {
    const trainer = createOutsideTrainer({ schema, clock: systemClock })
    const limit = systemClock.deadline(20, 'the call')
    await expect(trainer.script.parameters(limit)).rejects.toMatchObject({ code: 'timeout' })
    await trainer.begin({ outerStep: 0, parameters: start }, { evaluate: undefined, round: null })
    const stopping = new AbortController()
    const asked = trainer.innerSteps(0, { signal: stopping.signal })
    stopping.abort(new ShoalError('aborted', 'stop'))
    await expect(asked).rejects.toMatchObject({ code: 'aborted' })
  })
})

describe('a silent script', () => {
  test('is told of when it is quiet for too long, and when it is back', async () => {
    const clock = createManualClock()
    const trainer = createOutsideTrainer({ schema, clock, silentMs: 1000 })
    await trainer.begin({ outerStep: 0, parameters: start }, { evaluate: undefined, round: null })
    const told: boolean[] = []
    const seen: InnerStepsProgress[] = []
    const asked = trainer.innerSteps(0, {
      onSilence: async (silent) => void told.push(silent),
      onProgress: (progress) => seen.push(progress),
    })
    await expect.poll(() => told).toEqual([true])
    expect(trainer.script.progress({ innerStep: 1, loss: 3, tokens: 8 })).toEqual({ enough: false })
    await expect.poll(() => told).toEqual([true, false])
    expect(seen).toEqual([{ step: 1, loss: 3, tokens: 8 }])
    await clock.advance(999)
    expect(told).toHaveLength(2)
    await clock.advance(1)
    await expect.poll(() => told).toEqual([true, false, true])
    const result = trainer.script.outerStep(step(0), writes(1, 1, 1), never)
    await asked
    await clock.advance(10_000)
    expect(told).toEqual([true, false, true, false])
    const round = { outerStep: 0, outcome: 'solo', partners: [], consensusDistance: null } as const
    trainer.settle(1, round)
    await result
  })

  test('is told that the swarm has waited enough', async () => {
    const trainer = await begun()
    const enough = new AbortController()
    const asked = trainer.innerSteps(0, { enough: enough.signal })
    expect(trainer.script.progress({})).toEqual({ enough: false })
    enough.abort()
    expect(trainer.script.progress({})).toEqual({ enough: true })
    trainer.end(new ShoalError('aborted', 'stop'))
    const stop = trainer.close()
    await stop
    asked.catch(() => {})
  })
})
