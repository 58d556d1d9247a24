/**
 * Fine-tuning that exchanges adapters only (LoRA, arXiv:2106.09685): each script keeps the frozen base to itself, the run
 * was created from the tensors of the adapters, and no other byte leaves a node.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { ROUTES } from '../../../../node/api/routes.ts'
import { seededRandom } from '../../../../src/random.ts'
import { runSpecSchema } from '../../../../src/run/manifest.ts'
import { readSafetensors, readTensors } from '../../../../src/tensor/safetensors.ts'
import { createSchema } from '../../../../src/tensor/schema.ts'
import { isFinished, waitForRun } from '../../../swarm/swarm.ts'
import { fileOf, startApis, type Api, type LocalApis } from './local-api.ts'

const WIDTH = 64
const RANK = 2
const OUTER_STEPS = 12
const INNER_STEPS = 30
const SAMPLES = 8
const RATE = 0.02

/** y = (W + up down) x: W [WIDTH, WIDTH] stays with the scripts. */
const adapters = createSchema([
  { name: 'layer.lora_A.weight', shape: [RANK, WIDTH], decay: false },
  { name: 'layer.lora_B.weight', shape: [WIDTH, RANK], decay: false },
])

let local: LocalApis
beforeAll(async () => {
  local = await startApis(2, 'lora')
})
afterAll(() => local.close())

function normals(seed: string, count: number, scale: number): Float32Array {
  const random = seededRandom(seed)
  return Float32Array.from({ length: count }, () => scale * random.normal())
}

/** [rows, columns] times a vector. */
function times(matrix: Float32Array, vector: Float32Array): Float32Array {
  const columns = vector.length
  return Float32Array.from({ length: matrix.length / columns }, (_, row) =>
    vector.reduce((sum, value, column) => sum + value * (matrix[row * columns + column] ?? 0), 0),
  )
}

const base = normals('base', WIDTH * WIDTH, 1 / Math.sqrt(WIDTH))
const wantedDown = normals('wanted down', RANK * WIDTH, 1 / Math.sqrt(WIDTH))
const wantedUp = normals('wanted up', WIDTH * RANK, 1)

/** What the adapters lack of the wanted ones, for one input; the base is in both, and only in what is compared. */
function errorOf(
  values: Float32Array,
  x: Float32Array,
): { error: Float32Array; hidden: Float32Array } {
  const hidden = times(values.subarray(0, RANK * WIDTH), x)
  const adapted = times(values.subarray(RANK * WIDTH), hidden)
  const wanted = times(wantedUp, times(wantedDown, x))
  const frozen = times(base, x)
  const error = frozen.map((value, i) => value + (adapted[i] ?? 0) - (value + (wanted[i] ?? 0)))
  return { error, hidden }
}

/** Inner steps of gradient descent on own data; returns the mean squared error before the last. */
function innerSteps(values: Float32Array, seed: string): number {
  let loss = 0
  for (let step = 0; step < INNER_STEPS; step++) {
    const gradient = new Float32Array(values.length)
    loss = 0
    for (let sample = 0; sample < SAMPLES; sample++) {
      const x = normals(`${seed} ${step} ${sample}`, WIDTH, 1)
      const { error, hidden } = errorOf(values, x)
      for (let row = 0; row < WIDTH; row++) {
        const of = error[row] ?? 0
        loss += (of * of) / (WIDTH * SAMPLES)
        for (let rank = 0; rank < RANK; rank++) {
          const at = RANK * WIDTH + row * RANK + rank
          gradient[at]! += (of * (hidden[rank] ?? 0)) / SAMPLES
          const back = (of * (values[at] ?? 0)) / SAMPLES
          for (let i = 0; i < WIDTH; i++) gradient[rank * WIDTH + i]! += back * (x[i] ?? 0)
        }
      }
    }
    for (let i = 0; i < values.length; i++) values[i]! -= RATE * (gradient[i] ?? 0)
  }
  return loss
}

/** What scripts/shoal.py does in Python. Returns the loss of each outer step. */
async function train({ client }: Api, run: string, seed: string): Promise<number[]> {
  const start = await client.download(ROUTES.parameters, { run })
  let values = await readSafetensors(start.content ?? new ReadableStream(), adapters)
  let outerStep = start.output?.outerStep ?? 0
  const losses: number[] = []
  while (outerStep < OUTER_STEPS) {
    await client.call(ROUTES.progress, { run })
    const loss = innerSteps(values, `${seed} ${outerStep}`)
    losses.push(loss)
    const step = { run, outerStep, tokens: INNER_STEPS * SAMPLES, loss }
    const { output, content } = await client.download(ROUTES.outerStep, step, {
      body: await fileOf(adapters, [...values]),
    })
    values = await readSafetensors(content ?? new ReadableStream(), adapters)
    outerStep = output?.nextOuterStep ?? OUTER_STEPS
  }
  return losses
}

test('two scripts tune adapters together, and the base stays where it is', async () => {
  const [one, two] = local.apis
  if (one === undefined || two === undefined) throw new Error('two nodes')
  const from = join(local.folder, 'adapters.safetensors')
  // As LoRA begins: the one random, the other zero, together nothing.
  const start = [...normals('start', RANK * WIDTH, 1 / Math.sqrt(WIDTH))]
  writeFileSync(from, await fileOf(adapters, [...start, ...new Float32Array(WIDTH * RANK)]))
  const spec = runSpecSchema.parse({
    name: 'adapters',
    model: { kind: 'external' },
    from,
    innerSteps: INNER_STEPS,
    outerSteps: OUTER_STEPS,
    averaging: { rule: 'gossip-diloco', momentum: 0.5 },
    limits: { minPeers: 2, roundTimeoutMs: 20_000 },
  })
  const { id: run } = await one.client.call(ROUTES.createRun, { spec })
  const { link } = await one.client.call(ROUTES.invite, { run })
  await two.client.call(ROUTES.joinRun, { run: link })
  const [losses] = await Promise.all([train(one, run, 'one'), train(two, run, 'two')])
  for (const { node } of [one, two]) await waitForRun(node, run, isFinished)

  const views = [one, two].map(({ node }) => node.run(run))
  // On a busy machine the one may be done with a step before the other has begun it.
  const averaged = views[1]?.rounds.averaged ?? 0
  expect(averaged).toBeGreaterThan(0)
  expect(views[0]?.parametersHash).toBe(views[1]?.parametersHash)
  expect(losses.at(-1)).toBeLessThan((losses[0] ?? 0) / 10)

  // 1.6 bytes per element and round, and the merge in float32: of the base there would be 32 times as many.
  const elements = adapters.size
  expect(views[0]).toMatchObject({ parameters: elements })
  const sent = views[0]?.bytesSent ?? Infinity
  expect(sent).toBeGreaterThan(elements * averaged)
  expect(sent).toBeLessThan(elements * 4 * (OUTER_STEPS + 2))
  expect(sent).toBeLessThan(base.length * OUTER_STEPS)

  const folder = join(local.folder, 'tuned')
  await one.client.call(ROUTES.exportCheckpoint, { run, folder })
  const { schema } = await readTensors([readFileSync(join(folder, 'model.safetensors'))])
  expect(schema.entries.map(({ name, shape }) => ({ name, shape }))).toEqual(
    adapters.entries.map(({ name, shape }) => ({ name, shape: [...shape] })),
  )
})
