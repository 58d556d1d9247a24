import { describe, expect, test } from 'vitest'
import { loadRuntime, vectorBindings, type Runtime } from '../../../../node/engine/runtime.ts'
import { gptSchema, gradientName, trainingGraph, type GptSpec } from '../../../../src/model/gpt.ts'
import { initialParameters } from '../../../../src/model/initial-parameters.ts'
import { seededRandom } from '../../../../src/random.ts'
import { norm, subtract } from '../../../../src/tensor/vector.ts'

const options = { threads: 1, spinning: false }
const native = await loadRuntime('native', options)
const wasm = await loadRuntime('wasm', options)

const SEQUENCES = 4
const sizes = { layers: 3, heads: 4, embedding: 64, context: 32, vocabulary: 65 }

async function gradientBy(
  runtime: Runtime,
  spec: GptSpec,
): Promise<{ loss: number; gradient: Float32Array }> {
  const schema = gptSchema(spec)
  const random = seededRandom('tokens')
  const length = SEQUENCES * spec.context
  const draw = () => Int32Array.from({ length }, () => random.integer(spec.vocabulary))
  const gradient = new Float32Array(schema.size)
  const loss = new Float32Array(1)
  const program = await runtime.open(trainingGraph(spec, SEQUENCES))
  const run = program.bind(
    {
      tokens: { data: draw(), shape: [length] },
      targets: { data: draw(), shape: [length] },
      ...vectorBindings(schema, initialParameters(spec, 'both')),
    },
    { loss: { data: loss, shape: [] }, ...vectorBindings(schema, gradient, gradientName) },
  )
  await run()
  await program.close()
  return { loss: loss[0]!, gradient }
}

describe('the native and the WebAssembly build', () => {
  test.each(['relu-squared', 'gelu'] as const)(
    'agree on loss and gradients of a model with %s within 1e-5',
    async (activation) => {
      const spec = { ...sizes, activation }
      const first = await gradientBy(native, spec)
      const second = await gradientBy(wasm, spec)
      expect(norm(first.gradient)).toBeGreaterThan(0.1)
      expect(Math.abs(first.loss - second.loss)).toBeLessThan(1e-5)
      const apart = norm(subtract(first.gradient, second.gradient))
      expect(apart / norm(first.gradient)).toBeLessThan(1e-5)
    },
  )

  test.each([
    ['native', native],
    ['wasm', wasm],
  ])('%s refuses what is no model, and tokens out of range', async (_name, runtime) => {
    const refusal = { code: 'engine_failed' }
    await expect(runtime.open(Uint8Array.of(1, 2, 3))).rejects.toMatchObject(refusal)
    const spec = { ...sizes, layers: 1, activation: 'relu-squared' } as const
    const schema = gptSchema(spec)
    const program = await runtime.open(trainingGraph(spec, 1))
    const foreign = new Int32Array(spec.context).fill(spec.vocabulary)
    const run = program.bind(
      {
        tokens: { data: foreign, shape: [spec.context] },
        targets: { data: foreign, shape: [spec.context] },
        ...vectorBindings(schema, initialParameters(spec, 'both')),
      },
      { loss: { data: new Float32Array(1), shape: [] } },
    )
    await expect(run()).rejects.toMatchObject(refusal)
    await program.close()
  })
})
