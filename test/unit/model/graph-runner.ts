/** Runs graphs under construction by onnxruntime, in this process. */
import { loadRuntime, type Bindings } from '../../../node/engine/runtime.ts'
import { createGraph, sizeOf, type Graph, type Tensor } from '../../../src/model/graph.ts'
import { encodeOnnx } from '../../../src/model/onnx.ts'
import type { Random } from '../../../src/random.ts'

const runtime = await loadRuntime('native', { threads: 1, spinning: false })

export type Values = Record<string, Float32Array | Int32Array>

/** Compiles what `build` makes and returns a function from values of its inputs to values of its outputs. */
export async function compile(
  build: (graph: Graph) => void,
): Promise<(inputs: Values) => Promise<Values>> {
  const graph = createGraph()
  build(graph)
  return compileBytes(encodeOnnx(graph), graph.inputs, shapesOf(graph))
}

export async function compileBytes(
  model: Uint8Array,
  inputs: readonly Tensor[],
  outputs: Readonly<Record<string, readonly number[]>>,
): Promise<(inputs: Values) => Promise<Values>> {
  const program = await runtime.open(model)
  const from: Bindings = Object.fromEntries(
    inputs.map(({ name, type, shape }) => {
      const length = sizeOf(shape)
      const data = type === 'int32' ? new Int32Array(length) : new Float32Array(length)
      return [name, { data, shape }]
    }),
  )
  const to: Bindings = Object.fromEntries(
    Object.entries(outputs).map(([name, shape]) => [
      name,
      { data: new Float32Array(sizeOf(shape)), shape },
    ]),
  )
  const run = program.bind(from, to)
  return async (values) => {
    for (const [name, { data }] of Object.entries(from)) data.set(values[name] ?? [])
    await run()
    return Object.fromEntries(Object.entries(to).map(([name, { data }]) => [name, data.slice()]))
  }
}

function shapesOf({ outputs }: Graph): Record<string, readonly number[]> {
  return Object.fromEntries(outputs.map(({ name, tensor }) => [name, tensor.shape]))
}

export function normalValues(random: Random, length: number, scale = 1): Float32Array {
  return Float32Array.from({ length }, () => random.normal() * scale)
}

/** In float64, so that the sum adds no error of its own. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return Array.from(a).reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0)
}
