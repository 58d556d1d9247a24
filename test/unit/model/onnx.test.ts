import { describe, expect, test } from 'vitest'
import { createGraph, type Graph } from '../../../src/model/graph.ts'
import { encodeOnnx } from '../../../src/model/onnx.ts'
import { binary, reshape, split, transpose, unary } from '../../../src/model/operators.ts'
import { compile } from './graph-runner.ts'

/** A graph whose constants come back unchanged, as float32. */
async function roundTrip(values: readonly number[]): Promise<number[]> {
  const run = await compile((graph) => {
    const input = graph.input('x', 'float32', [values.length])
    const constant = graph.constant('float32', values, [values.length])
    graph.output('y', binary(graph, 'Add', input, constant))
  })
  const { y } = await run({ x: new Float32Array(values.length) })
  return [...y!]
}

describe('the ONNX writer', () => {
  test('keeps float constants exactly, extremes included', async () => {
    const values = [0, 1, -1.5, 3.4028234663852886e38, -1e9, 1.1754943508222875e-38, Infinity]
    expect(await roundTrip(values)).toEqual(values.map(Math.fround))
  })

  test('writes lengths of more than one and more than two varint bytes', async () => {
    for (const length of [1, 127, 128, 5000]) {
      const values = Array.from({ length }, (_, index) => index - 3)
      expect(await roundTrip(values)).toEqual(values)
    }
  })

  test('writes negative integers', async () => {
    const run = await compile((graph) => {
      const x = graph.input('x', 'float32', [2, 3])
      graph.output('y', reshape(graph, transpose(graph, x, [1, 0]), [6]))
      // As an attribute: the last axis.
      const [soft] = graph.node('Softmax', [x], [{ type: 'float32', shape: [2, 3] }], {
        axis: { int: -1 },
      })
      graph.output('soft', soft!)
      // As a constant: whatever is left.
      const left = graph.constant('int64', [-1], [1])
      const [flat] = graph.node('Reshape', [x, left], [{ type: 'float32', shape: [6] }])
      graph.output('flat', flat!)
    })
    const { y, soft, flat } = await run({ x: Float32Array.of(1, 2, 3, 4, 5, 6) })
    expect([...y!]).toEqual([1, 4, 2, 5, 3, 6])
    expect([...flat!]).toEqual([1, 2, 3, 4, 5, 6])
    expect(soft![0]! + soft![1]! + soft![2]!).toBeCloseTo(1, 6)
  })

  test('an input, a constant and one value under two names can be outputs', async () => {
    const run = await compile((graph) => {
      const x = graph.input('x', 'float32', [2])
      const doubled = binary(graph, 'Add', x, x)
      graph.output('itself', x)
      graph.output('constant', graph.constant('float32', [7, 8], [2]))
      graph.output('first', doubled)
      graph.output('second', doubled)
      graph.output('used', unary(graph, 'Relu', doubled))
    })
    const outputs = await run({ x: Float32Array.of(-1, 2) })
    expect(Object.fromEntries(Object.entries(outputs).map(([k, v]) => [k, [...v]]))).toEqual({
      itself: [-1, 2],
      constant: [7, 8],
      first: [-2, 4],
      second: [-2, 4],
      used: [0, 4],
    })
  })

  test('scalars, several outputs of one node and empty graphs of attributes', async () => {
    const run = await compile((graph) => {
      const x = graph.input('x', 'float32', [4])
      const [low, high] = split(graph, x, 0, 2)
      graph.output('low', low!)
      graph.output('sum', binary(graph, 'Add', high!, 0.5))
    })
    const { low, sum } = await run({ x: Float32Array.of(1, 2, 3, 4) })
    expect([...low!, ...sum!]).toEqual([1, 2, 3.5, 4.5])
  })

  test('the same graph gives the same bytes, another one does not', () => {
    const build = (scale: number): Uint8Array => {
      const graph = createGraph()
      const x = graph.input('x', 'float32', [3])
      graph.output('y', binary(graph, 'Mul', x, scale))
      return encodeOnnx(graph)
    }
    expect(build(2)).toEqual(build(2))
    expect(build(2)).not.toEqual(build(3))
  })

  test('refuses what a file cannot hold', () => {
    const withAttribute = (int: number): Graph => {
      const graph = createGraph()
      const x = graph.input('x', 'float32', [3])
      const [y] = graph.node('Softmax', [x], [{ type: 'float32', shape: [3] }], { axis: { int } })
      graph.output('y', y!)
      return graph
    }
    expect(() => encodeOnnx(withAttribute(0.5))).toThrow('0.5 is no integer')
    expect(() => encodeOnnx(withAttribute(2 ** 53))).toThrow('is no integer')
    expect(() => createGraph().constant('float32', [1, 2], [3])).toThrow('got 2 values')
  })

  test('refuses two things of one name', () => {
    const graph = createGraph()
    const x = graph.input('x', 'float32', [1])
    expect(() => graph.input('x', 'float32', [1])).toThrow('two values named x')
    graph.output('y', unary(graph, 'Relu', x))
    expect(() => graph.output('y', x)).toThrow('two outputs named y')
    graph.output('x', unary(graph, 'Exp', x))
    expect(() => encodeOnnx(graph)).toThrow('the name of output x is taken')
  })

  test('equal nodes and constants exist once', () => {
    const graph = createGraph()
    const x = graph.input('x', 'float32', [2])
    expect(binary(graph, 'Mul', x, 2)).toBe(binary(graph, 'Mul', x, 2))
    expect(binary(graph, 'Mul', x, 3)).not.toBe(binary(graph, 'Mul', x, 2))
    expect(graph.constant('float32', [-0])).not.toBe(graph.constant('float32', [0]))
    expect(graph.nodes).toHaveLength(2)
  })
})
