import { describe, expect, test } from 'vitest'
import { causalAttention } from '../../../src/model/attention.ts'
import { crossEntropy } from '../../../src/model/cross-entropy.ts'
import { add, addToEach, gelu, reluSquared } from '../../../src/model/elementwise.ts'
import { embedding } from '../../../src/model/embedding.ts'
import { gradients } from '../../../src/model/gradient.ts'
import { createGraph, sizeOf, type Graph, type Tensor } from '../../../src/model/graph.ts'
import { linear, tiedHead } from '../../../src/model/linear.ts'
import { layerNorm } from '../../../src/model/normalization.ts'
import { seededRandom } from '../../../src/random.ts'
import { compile, dot, normalValues } from './graph-runner.ts'

interface Operation {
  /** Inputs to differentiate with respect to. */
  shapes: Readonly<Record<string, readonly number[]>>
  build: (graph: Graph, inputs: Record<string, Tensor>) => Tensor
  /** Integer inputs, which have no gradient. */
  indices?: Readonly<Record<string, readonly number[]>>
  /** Keeps values away from a kink. */
  distance?: number
}

const x = 'x'
const of = (inputs: Record<string, Tensor>, name: string): Tensor => inputs[name]!

const OPERATIONS: Record<string, Operation> = {
  add: {
    shapes: { x: [3, 4], y: [3, 4] },
    build: (graph, inputs) => add(graph, of(inputs, x), of(inputs, 'y')),
  },
  'add of a tensor to itself': {
    shapes: { x: [3, 4] },
    build: (graph, inputs) => add(graph, of(inputs, x), of(inputs, x)),
  },
  addToEach: {
    shapes: { x: [6, 4], rows: [2, 4] },
    build: (graph, inputs) => addToEach(graph, of(inputs, x), of(inputs, 'rows'), 3),
  },
  reluSquared: {
    shapes: { x: [5, 7] },
    build: (graph, inputs) => reluSquared(graph, of(inputs, x)),
    distance: 0.05,
  },
  gelu: { shapes: { x: [5, 7] }, build: (graph, inputs) => gelu(graph, of(inputs, x)) },
  linear: {
    shapes: { x: [5, 3], weight: [3, 4], bias: [4] },
    build: (graph, inputs) =>
      linear(graph, of(inputs, x), of(inputs, 'weight'), of(inputs, 'bias')),
  },
  tiedHead: {
    shapes: { x: [5, 3], table: [7, 3] },
    build: (graph, inputs) => tiedHead(graph, of(inputs, x), of(inputs, 'table')),
  },
  layerNorm: {
    shapes: { x: [4, 6], gain: [6], bias: [6] },
    build: (graph, inputs) =>
      layerNorm(graph, of(inputs, x), of(inputs, 'gain'), of(inputs, 'bias')),
  },
  causalAttention: {
    shapes: { qkv: [2 * 4, 3 * 6] },
    build: (graph, inputs) =>
      causalAttention(graph, of(inputs, 'qkv'), { sequences: 2, context: 4, heads: 2 }),
  },
  embedding: {
    shapes: { table: [5, 3] },
    // Token 1 occurs three times and token 4 never: its gradient is zero.
    indices: { tokens: [1, 0, 1, 3, 2, 1] },
    build: (graph, inputs) => embedding(graph, of(inputs, 'table'), of(inputs, 'tokens')),
  },
  crossEntropy: {
    shapes: { logits: [4, 6] },
    indices: { targets: [0, 5, 2, 2] },
    build: (graph, inputs) => crossEntropy(graph, of(inputs, 'logits'), of(inputs, 'targets')),
  },
  'a chain with a branch': {
    shapes: { x: [4, 6], weight: [6, 6], bias: [6] },
    build: (graph, inputs) => {
      const inner = gelu(
        graph,
        linear(graph, of(inputs, x), of(inputs, 'weight'), of(inputs, 'bias')),
      )
      const outer = linear(graph, inner, of(inputs, 'weight'), of(inputs, 'bias'))
      return add(graph, outer, of(inputs, x))
    },
  },
}

/**
 * Step of the central difference. float32 rounding costs about 1e-7 / STEP of an output's size, truncation about STEP²:
 * with values of order 1, 2e-3 of the largest gradient is an honest bound.
 */
const STEP = 1e-2
const TOLERANCE = 2e-3

describe('gradients against central finite differences', () => {
  for (const [name, { shapes, build, indices = {}, distance = 0 }] of Object.entries(OPERATIONS)) {
    test(name, async () => {
      const random = seededRandom('gradient', name)
      let outputShape: readonly number[] = []
      const run = await compile((graph) => {
        const inputs: Record<string, Tensor> = {}
        for (const [input, shape] of Object.entries(shapes)) {
          inputs[input] = graph.input(input, 'float32', shape)
        }
        for (const [input, { length }] of Object.entries(indices)) {
          inputs[input] = graph.input(input, 'int32', [length])
        }
        const output = build(graph, inputs)
        outputShape = output.shape
        const seed = graph.input('seed', 'float32', output.shape)
        const variables = Object.keys(shapes)
        graph.output('output', output)
        gradients(
          graph,
          output,
          variables.map((input) => inputs[input]!),
          seed,
        ).forEach((gradient, index) => {
          expect(gradient.shape).toEqual(shapes[variables[index]!])
          graph.output(`gradient.${variables[index]}`, gradient)
        })
      })
      const values: Record<string, Float32Array | Int32Array> = {
        seed: normalValues(random, sizeOf(outputShape)),
      }
      for (const [input, shape] of Object.entries(shapes)) {
        values[input] = normalValues(random, sizeOf(shape)).map(
          (value) => value + Math.sign(value) * distance,
        )
      }
      for (const [input, tokens] of Object.entries(indices)) values[input] = Int32Array.from(tokens)

      const analytic = await run(values)
      for (const [input, shape] of Object.entries(shapes)) {
        const gradient = analytic[`gradient.${input}`]!
        const largest = Math.max(...gradient.map(Math.abs))
        expect(largest).toBeGreaterThan(0)
        for (let element = 0; element < sizeOf(shape); element += 1) {
          const along = async (step: number): Promise<number> => {
            const moved = values[input]!.slice()
            moved[element]! += step
            return dot((await run({ ...values, [input]: moved })).output!, values['seed']!)
          }
          const numeric = ((await along(STEP)) - (await along(-STEP))) / (2 * STEP)
          expect(Math.abs(numeric - gradient[element]!), `${input}[${element}]`).toBeLessThan(
            TOLERANCE * Math.max(1, largest),
          )
        }
      }
    })
  }
})

describe('operations', () => {
  test('causalAttention sees no token of the future and none of another sequence', async () => {
    const [sequences, context, heads, width] = [2, 5, 2, 3]
    const embeddingWidth = heads * width
    const run = await compile((graph) => {
      const qkv = graph.input('qkv', 'float32', [sequences * context, 3 * embeddingWidth])
      graph.output('output', causalAttention(graph, qkv, { sequences, context, heads }))
    })
    const qkv = normalValues(seededRandom('attention'), sequences * context * 3 * embeddingWidth)
    const before = (await run({ qkv })).output!
    const changed = qkv.slice()
    const [sequence, token] = [1, 3]
    changed.fill(
      9,
      (sequence * context + token) * 3 * embeddingWidth,
      (sequence * context + token + 1) * 3 * embeddingWidth,
    )
    const after = (await run({ qkv: changed })).output!
    const rows = Array.from({ length: sequences * context }, (_, row) =>
      before
        .subarray(row * embeddingWidth, (row + 1) * embeddingWidth)
        .every((value, column) => value === after[row * embeddingWidth + column]),
    )
    expect(rows).toEqual([true, true, true, true, true, true, true, true, false, false])
    // The first token sees only itself: its own value, exactly.
    expect([...before.subarray(0, embeddingWidth)]).toEqual([
      ...qkv.subarray(2 * embeddingWidth, 3 * embeddingWidth),
    ])
  })

  test('crossEntropy is ln(vocabulary) for equal logits and exact for extreme ones', async () => {
    const run = await compile((graph) => {
      const logits = graph.input('logits', 'float32', [2, 4])
      const targets = graph.input('targets', 'int32', [2])
      graph.output('loss', crossEntropy(graph, logits, targets))
    })
    const targets = Int32Array.of(1, 3)
    const equal = await run({ logits: new Float32Array(8).fill(7), targets })
    expect(equal['loss']![0]).toBeCloseTo(Math.log(4), 6)
    const extreme = await run({ logits: Float32Array.of(0, 500, 0, 0, 500, 0, 0, 0), targets })
    expect(extreme['loss']![0]).toBeCloseTo(250, 3)
  })

  test('a gradient that does not exist is refused', () => {
    const graph = createGraph()
    const a = graph.input('a', 'float32', [2])
    const b = graph.input('b', 'float32', [2])
    expect(() => gradients(graph, add(graph, a, a), [b])).toThrow('does not depend on b')
  })

  test('shapes that do not fit are refused when the node is added', () => {
    const graph = createGraph()
    const a = graph.input('a', 'float32', [2, 3])
    const b = graph.input('b', 'float32', [4, 2])
    expect(() => add(graph, a, b)).toThrow('do not combine')
    expect(() => tiedHead(graph, a, b)).toThrow('do not multiply')
  })
})
