/** Outside trainers as scripts see them: over HTTP, with a model that only they know. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ApiClient } from '../../../../node/api/client.ts'
import { ROUTES } from '../../../../node/api/routes.ts'
import { ShoalError } from '../../../../src/errors.ts'
import { LIMITS } from '../../../../src/limits.ts'
import { runSpecSchema, type RunSpecInput } from '../../../../src/run/manifest.ts'
import { readSafetensors } from '../../../../src/tensor/safetensors.ts'
import { schemaHash } from '../../../../src/tensor/schema.ts'
import { isFinished, waitForRun } from '../../../swarm/swarm.ts'
import { fileOf, lineSchema, startApis, type LocalApis } from './local-api.ts'

const START = [0, 0, 0, 0, 0, 0]

let local: LocalApis
beforeAll(async () => {
  local = await startApis(2, 'outside')
  writeFileSync(join(local.folder, 'start.safetensors'), await fileOf(lineSchema, START))
})
afterAll(() => local.close())

/** One peer, exact rule, no codec: what comes out can be told in advance. */
async function createRun(overrides: Partial<RunSpecInput> = {}): Promise<string> {
  const spec = runSpecSchema.parse({
    name: 'line',
    model: { kind: 'external' },
    from: join(local.folder, 'start.safetensors'),
    innerSteps: 4,
    outerSteps: 3,
    averaging: { rule: 'diloco', learningRate: 1, momentum: 0, pseudoGradientCodec: 'fp32' },
    limits: { startTimeoutMs: 0, roundTimeoutMs: 20_000, ...overrides.limits },
    ...overrides,
  })
  return (await local.api.client.call(ROUTES.createRun, { spec })).id
}

async function outerStep(
  client: ApiClient,
  run: string,
  step: number,
  values: number[],
): Promise<{ next: number; outcome: string | undefined; values: number[] }> {
  const { output, content } = await client.download(
    ROUTES.outerStep,
    { run, outerStep: step, tokens: 100, loss: 1.5 },
    { body: await fileOf(lineSchema, values) },
  )
  const received = await readSafetensors(content ?? new ReadableStream(), lineSchema)
  return {
    next: output?.nextOuterStep ?? -1,
    outcome: output?.outcome,
    values: [...received],
  }
}

describe('a script', () => {
  test('that asks twice for the same run has it once', async () => {
    const { client } = local.api
    const limits = { startTimeoutMs: 0 }
    const once = await createRun({ name: 'twice', seed: 'of twice', limits })
    const again = await createRun({ name: 'twice', seed: 'of twice', limits })
    expect(again).toBe(once)
    const { runs } = await client.call(ROUTES.runs, {})
    expect(runs.filter(({ id }) => id === once)).toHaveLength(1)
    const other = local.apis[1]?.client ?? client
    const { link } = await client.call(ROUTES.invite, { run: once })
    const input = { run: link, trainer: 'outside' as const }
    const joined = await Promise.all([1, 2, 3].map(() => other.call(ROUTES.joinRun, input)))
    expect(joined.map((view) => view.id)).toEqual([once, once, once])
    await other.call(ROUTES.leaveRun, { run: once })
    await client.call(ROUTES.leaveRun, { run: once })
  })

  test('trains a model of its own from the first step to the last', async () => {
    const { client, node } = local.api
    const run = await createRun()
    const manifest = await client.call(ROUTES.manifest, { run })
    expect(manifest).toMatchObject({
      model: {
        kind: 'external',
        tensors: [
          { name: 'slope', shape: [2, 2] },
          { name: 'offset', shape: [2] },
        ],
      },
      data: null,
      schemaHash: schemaHash(lineSchema),
    })
    const begun = await client.download(ROUTES.parameters, { run })
    expect(begun.output).toEqual({ outerStep: 0 })
    const start = await readSafetensors(begun.content ?? new ReadableStream(), lineSchema)
    expect([...start]).toEqual(START)

    expect(await client.call(ROUTES.progress, { run, innerStep: 1, loss: 2, tokens: 25 })).toEqual({
      enough: false,
    })
    const first = await outerStep(client, run, 0, [1, 2, 3, 4, 5, 6])
    expect(first).toEqual({ next: 1, outcome: 'solo', values: [1, 2, 3, 4, 5, 6] })
    // A retry, as after a broken connection: whatever it sends, the step counts once.
    expect(await outerStep(client, run, 0, [9, 9, 9, 9, 9, 9])).toEqual(first)
    expect(node.run(run)).toMatchObject({ outerStep: 1, loss: 1.5, tokens: 100 })

    const past = await outerStep(client, run, 1, [1, 1, 1, 1, 1, 1]).then(() =>
      outerStep(client, run, 0, START).catch((thrown: unknown) => thrown),
    )
    expect(past).toBeInstanceOf(ShoalError)
    expect(past).toMatchObject({ code: 'conflict', details: { outerStep: 2 } })

    await outerStep(client, run, 2, [7, 7, 7, 7, 7, 7])
    await waitForRun(node, run, isFinished)
    const { output, content } = await client.download(ROUTES.parameters, { run })
    expect(output).toEqual({ outerStep: 3 })
    const final = await readSafetensors(content ?? new ReadableStream(), lineSchema)
    expect([...final]).toEqual([7, 7, 7, 7, 7, 7])
    expect(node.run(run)).toMatchObject({ validationLoss: null, lossStart: null })
    const members = await client.call(ROUTES.members, { run })
    expect(members.peers).toMatchObject([{ peer: node.peerId, record: { outerStep: 3 } }])
    await expect(outerStep(client, run, 3, START)).rejects.toThrow('the run is finished')
  })

  test('averages with another script behind another node', async () => {
    const [one, two] = local.apis
    if (one === undefined || two === undefined) throw new Error('two nodes')
    const run = await createRun({
      outerSteps: 1,
      limits: { minPeers: 2, startTimeoutMs: 60_000, roundTimeoutMs: 20_000 },
    })
    const { link } = await one.client.call(ROUTES.invite, { run })
    await two.client.call(ROUTES.joinRun, { run: link })
    for (const { client } of [one, two]) {
      const { content } = await client.download(ROUTES.parameters, { run })
      await content?.cancel()
    }
    // Before a script is heard its peer is silent, and nobody counts on it.
    const isTraining = ({ status }: { status: string }): boolean => status === 'training'
    for (const { node } of [one, two]) {
      await waitForRun(
        node,
        run,
        ({ members }) => members.length === 2 && members.every(isTraining),
      )
    }
    const results = await Promise.all([
      outerStep(one.client, run, 0, [2, 2, 2, 2, 2, 2]),
      outerStep(two.client, run, 0, [4, 4, 4, 4, 4, 4]),
    ])
    for (const { outcome, values } of results) {
      expect(outcome).toBe('averaged')
      expect(values).toEqual([3, 3, 3, 3, 3, 3])
    }
  })

  test('may start from what another has uploaded, and from a checkpoint', async () => {
    const { client, node } = local.api
    const { cid } = await client.call(
      ROUTES.putBlob,
      {},
      { body: await fileOf(lineSchema, [1, 2, 3, 4, 5, 6]) },
    )
    const run = await createRun({ from: cid, outerSteps: 1 })
    expect((await outerStep(client, run, 0, [2, 2, 2, 2, 2, 2])).next).toBe(1)
    await waitForRun(node, run, isFinished)
    const { checkpoints } = await client.call(ROUTES.checkpoints, { run })
    const checkpoint = checkpoints.find(({ final }) => final)?.cid
    const again = await createRun({ from: checkpoint, name: 'again' })
    const { content } = await client.download(ROUTES.parameters, { run: again })
    const start = await readSafetensors(content ?? new ReadableStream(), lineSchema)
    expect([...start]).toEqual([2, 2, 2, 2, 2, 2])
  })
})

test('so many calls hold a vector at once, and others after them', async () => {
  const { client } = local.api
  const oneFile = await fileOf(lineSchema, START)
  // Nobody else gives to these groups, so all of them wait.
  const waiting = new AbortController()
  const give = (round: number): Promise<unknown> =>
    client.download(
      ROUTES.average,
      { group: `held-${round}`, round, minPeers: 2 },
      { body: oneFile, signal: waiting.signal },
    )
  const calls = Array.from({ length: LIMITS.tensorCalls + 1 }, (_unused, round) => give(round))
  const outcomes = calls.map((call) => call.catch((thrown: unknown) => thrown))
  expect(await Promise.race(outcomes)).toMatchObject({ code: 'limit_exceeded' })
  waiting.abort()
  await Promise.all(outcomes)
  await expect
    .poll(async () => {
      const { content } = await client.download(
        ROUTES.average,
        { group: 'free', round: 0, minPeers: 1, waitMs: 0 },
        { body: oneFile },
      )
      return (await readSafetensors(content ?? new ReadableStream(), lineSchema)).length
    })
    .toBe(6)
})

describe('what does not fit', () => {
  test('is refused with its reason, and the step may be handed in again', async () => {
    const { client } = local.api
    const run = await createRun({ name: 'bad input' })
    const send = async (body: Uint8Array, changes: object = {}): Promise<unknown> => {
      const input = { run, outerStep: 0, tokens: 1, loss: 1, ...changes }
      return client.download(ROUTES.outerStep, input, { body }).catch((thrown: unknown) => thrown)
    }
    const good = await fileOf(lineSchema, START)
    const values = Float32Array.from(START)
    values[3] = Number.NaN
    const nan = await fileOf(lineSchema, [...values])
    expect(await send(nan)).toMatchObject({ code: 'tensors_invalid' })
    expect(await send(good.subarray(0, -4))).toMatchObject({ code: 'tensors_invalid' })
    expect(await send(new Uint8Array())).toMatchObject({ code: 'tensors_invalid' })
    const renamed = Buffer.from(good)
    renamed.write('slopf', renamed.indexOf('slope'))
    expect(await send(renamed)).toMatchObject({
      code: 'tensors_invalid',
      message: expect.stringContaining('tensor slope is missing'),
    })
    expect(await send(good, { outerStep: 7 })).toMatchObject({
      code: 'conflict',
      details: { outerStep: 0 },
    })
    expect(await send(good, { tokens: 0 })).toMatchObject({ code: 'body_invalid' })
    expect(await send(good, { loss: Number.NaN })).toMatchObject({ code: 'body_invalid' })
    expect((await outerStep(client, run, 0, START)).next).toBe(1)
    await client.call(ROUTES.leaveRun, { run })
    expect(await send(good)).toMatchObject({ code: 'run_unknown' })
  })

  test('a spec that says too little or too much about its model', async () => {
    const { client } = local.api
    const from = join(local.folder, 'start.safetensors')
    const create = (spec: RunSpecInput): Promise<unknown> =>
      client.call(ROUTES.createRun, { spec }).catch((thrown: unknown) => thrown)
    const external = { kind: 'external' } as const
    for (const [spec, message] of [
      [{ model: external }, "'spec.from' is missing"],
      [{ model: external, from, data: '/text' }, 'an external model has no data'],
      [{ model: { ...external, layers: 2 }, from }, "'spec.model.layers': comes with"],
      [{ model: external, from, tokenizer: 'byte' }, "'spec.tokenizer': comes with"],
      [{}, "'spec.data' is missing"],
      [{ data: '/text', from, model: { heads: 2 } }, "'spec.model.heads': comes with `from`"],
    ] as const) {
      expect(await create(spec)).toMatchObject({
        code: 'spec_invalid',
        message: expect.stringContaining(message),
      })
    }
    expect(await create({ model: external, from: 'start.safetensors' })).toMatchObject({
      code: 'folder_invalid',
      message: expect.stringContaining('neither a CID nor an absolute path'),
    })
    expect(await create({ model: external, from: '/nowhere' })).toMatchObject({
      code: 'folder_invalid',
    })
    const embedded = { spec: { model: external, from }, trainer: 'embedded' } as const
    await expect(client.call(ROUTES.createRun, embedded)).rejects.toMatchObject({
      code: 'spec_invalid',
      message: expect.stringContaining('--trainer outside'),
    })
  })

  test('a script for a run that the engine trains', async () => {
    const { client, folder } = { ...local.api, ...local }
    const data = join(folder, 'text.txt')
    writeFileSync(data, 'to be or not to be, that is the question. '.repeat(200))
    const { id: run } = await client.call(ROUTES.createRun, {
      spec: {
        data,
        model: { layers: 1, heads: 1, embedding: 8, context: 8 },
        innerSteps: 1,
        outerSteps: 2,
        limits: { startTimeoutMs: 0 },
      },
    })
    await expect(client.call(ROUTES.progress, { run })).rejects.toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('--trainer outside'),
    })
    await waitForRun(local.api.node, run, isFinished)
    const { output, content } = await client.download(ROUTES.parameters, { run })
    expect(output).toEqual({ outerStep: 2 })
    await content?.cancel()
  })
})
