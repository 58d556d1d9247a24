/** Runs that start from what others have trained. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { CheckpointFile, ShoalNode } from '../../src/node.ts'
import { runSpecSchema, type RunSpecInput } from '../../src/run/manifest.ts'
import type { ModelFiles } from '../../src/run/starting-point.ts'
import type { RunView } from '../../src/run/view.ts'
import { createSwarm, isFinished, realText, tinySpec, waitForRun, type Swarm } from './swarm.ts'

let swarm: Swarm
let first: ShoalNode
let second: ShoalNode
let text: Uint8Array
/** A finished run, and its last checkpoint. */
let taught: RunView
let checkpoint: string

beforeAll(async () => {
  swarm = await createSwarm(2, 'starting point')
  const [one, two] = swarm.nodes
  if (one === undefined || two === undefined) throw new Error('two nodes')
  first = one
  second = two
  text = await realText()
  const { id } = await first.createRun(
    tinySpec({ outerSteps: 8, innerSteps: 20, limits: { startTimeoutMs: 0 } }),
    text,
  )
  taught = await waitForRun(first, id, isFinished)
  checkpoint = taught.checkpoints.find(({ final }) => final)?.cid ?? ''
})
afterAll(() => swarm.stop())

/** A spec that goes on from somewhere: model and tokenizer come from there. */
function spec(overrides: Partial<RunSpecInput> = {}) {
  return runSpecSchema.parse({
    name: 'tuned',
    data: 'moby dick',
    from: checkpoint,
    batchSequences: 4,
    innerSteps: 5,
    outerSteps: 2,
    limits: { startTimeoutMs: 0 },
    ...overrides,
  })
}

async function textOf(file: CheckpointFile | undefined): Promise<string> {
  const pieces: Uint8Array[] = []
  for await (const piece of file?.content ?? []) pieces.push(piece)
  return Buffer.concat(pieces).toString()
}

async function exported(): Promise<ModelFiles> {
  const files = await first.exportCheckpoint(taught.id)
  const named = (name: string): CheckpointFile | undefined =>
    files.find((file) => file.name === name)
  const tensors = named('model.safetensors')?.content
  if (tensors === undefined) throw new Error('no tensors')
  const config = await textOf(named('config.json'))
  return { config, tokenizer: await textOf(named('tokenizer.json')), tensors }
}

describe('a run', () => {
  test('goes on from the checkpoint of another, also of one that this node has no part in', async () => {
    expect(taught.validationLoss).toBeLessThan((taught.lossStart ?? 0) - 0.3)
    for (const node of [first, second]) {
      const { id } = await node.createRun(spec({ seed: node.peerId }), text)
      const tuned = await waitForRun(node, id, isFinished)
      expect(tuned.lossStart).toBeCloseTo(taught.validationLoss ?? 0, 6)
      expect(node.manifest(id).model).toEqual(first.manifest(taught.id).model)
      expect(node.manifest(id).data?.tokenizer).toEqual(first.manifest(taught.id).data?.tokenizer)
    }
  })

  test('goes on from an exported folder', async () => {
    const { id } = await second.createRun(spec({ from: '/folder' }), text, {
      from: await exported(),
    })
    const tuned = await waitForRun(second, id, ({ lossStart }) => lossStart !== null)
    expect(tuned.lossStart).toBeCloseTo(taught.validationLoss ?? 0, 6)
  })

  test('may take any checkpoint for a model that only its scripts know', async () => {
    const external = { model: { kind: 'external' }, data: undefined } as const
    const { id } = await second.createRun(spec({ ...external, name: 'external' }), undefined)
    expect(second.manifest(id).schemaHash).toBe(first.manifest(taught.id).schemaHash)
    const { parameters } = await second.parameters(id, AbortSignal.timeout(10_000))
    const own = await first.parameters(taught.id, AbortSignal.timeout(10_000))
    expect(parameters).toEqual(own.parameters)
  })

  test('refuses a text with characters that its tokenizer does not know', async () => {
    const foreign = new TextEncoder().encode('語'.repeat(5_000))
    await expect(second.createRun(spec({ name: 'foreign' }), foreign)).rejects.toMatchObject({
      code: 'data_unusable',
    })
  })

  test('refuses what is no checkpoint, or no model', async () => {
    const { config: _none, ...bare } = await exported()
    await expect(
      second.createRun(spec({ from: '/folder' }), text, { from: bare }),
    ).rejects.toMatchObject({ code: 'folder_invalid' })
    const manifest = spec({ from: taught.id })
    await expect(second.createRun(manifest, text)).rejects.toMatchObject({
      code: 'spec_invalid',
      message: expect.stringMatching(/is no checkpoint: give the CID of one/),
    })
  })
})
