/**
 * Plain ONNX operators (opset 18) as functions from tensors to tensors, with their shapes; no gradients here.
 *
 * Only what the model needs is here. Every operator also exists in onnxruntime's WebGPU backend, but for `OneHot`
 * and `LogSoftmax`, which it runs on the CPU. Specification: https://onnx.ai/onnx/operators
 */
import { ShoalError } from '../errors.ts'
import { sizeOf, type ElementType, type Graph, type Tensor } from './graph.ts'

function single(
  graph: Graph,
  operator: string,
  inputs: readonly Tensor[],
  shape: readonly number[],
  options: { type?: ElementType; attributes?: Parameters<Graph['node']>[3] } = {},
): Tensor {
  const type = options.type ?? inputs[0]?.type ?? 'float32'
  const [output] = graph.node(operator, inputs, [{ type, shape }], options.attributes)
  if (output === undefined) throw new ShoalError('internal', `${operator} made no output`)
  return output
}

/** Shape of `a op b` by numpy's broadcasting; throws `internal` where it does not apply. */
export function broadcast(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length)
  return Array.from({ length: rank }, (_, axis) => {
    const left = a[axis - rank + a.length] ?? 1
    const right = b[axis - rank + b.length] ?? 1
    if (left !== right && left !== 1 && right !== 1) {
      throw new ShoalError(
        'internal',
        `shapes [${a.join(', ')}] and [${b.join(', ')}] do not combine`,
      )
    }
    return Math.max(left, right)
  })
}

type Binary = 'Add' | 'Sub' | 'Mul' | 'Greater'

/** `a op b` elementwise with broadcasting; a number is a scalar constant. */
export function binary(graph: Graph, operator: Binary, a: Tensor, b: Tensor | number): Tensor {
  const right = typeof b === 'number' ? graph.constant('float32', [b]) : b
  const type = operator === 'Greater' ? 'bool' : a.type
  return single(graph, operator, [a, right], broadcast(a.shape, right.shape), { type })
}

export function unary(graph: Graph, operator: 'Relu' | 'Erf' | 'Exp', x: Tensor): Tensor {
  return single(graph, operator, [x], x.shape)
}

export function where(graph: Graph, condition: Tensor, a: Tensor, b: Tensor): Tensor {
  const shape = broadcast(condition.shape, broadcast(a.shape, b.shape))
  return single(graph, 'Where', [condition, a, b], shape, { type: a.type })
}

export function reduce(
  graph: Graph,
  operator: 'ReduceSum' | 'ReduceMean',
  x: Tensor,
  axis: number,
  keep: boolean,
): Tensor {
  const shape = keep
    ? x.shape.map((extent, index) => (index === axis ? 1 : extent))
    : x.shape.filter((_, index) => index !== axis)
  const axes = graph.constant('int64', [axis], [1])
  return single(graph, operator, [x, axes], shape, { attributes: { keepdims: { int: +keep } } })
}

export function reshape(graph: Graph, x: Tensor, shape: readonly number[]): Tensor {
  if (sizeOf(x.shape) !== sizeOf(shape)) {
    throw new ShoalError(
      'internal',
      `[${x.shape.join(', ')}] does not reshape to [${shape.join(', ')}]`,
    )
  }
  return single(graph, 'Reshape', [x, graph.constant('int64', shape, [shape.length])], shape)
}

export function transpose(graph: Graph, x: Tensor, permutation: readonly number[]): Tensor {
  const shape = permutation.map((axis) => extentOf(x, axis))
  return single(graph, 'Transpose', [x], shape, { attributes: { perm: { ints: permutation } } })
}

/** Splits an axis into `parts` equal parts. */
export function split(graph: Graph, x: Tensor, axis: number, parts: number): Tensor[] {
  const shape = x.shape.map((extent, index) => (index === axis ? extent / parts : extent))
  const outputs = Array.from({ length: parts }, () => ({ type: x.type, shape }))
  return graph.node('Split', [x], outputs, { axis: { int: axis }, num_outputs: { int: parts } })
}

/** Joins tensors of one shape along an axis. */
export function concat(graph: Graph, parts: readonly Tensor[], axis: number): Tensor {
  const shape = (parts[0]?.shape ?? []).map((extent, index) =>
    index === axis ? extent * parts.length : extent,
  )
  return single(graph, 'Concat', parts, shape, { attributes: { axis: { int: axis } } })
}

/** Matrix product over the last two axes; the leading axes of both must be equal. */
export function matmul(graph: Graph, a: Tensor, b: Tensor): Tensor {
  const rank = a.shape.length
  if (extentOf(a, rank - 1) !== extentOf(b, rank - 2)) {
    throw new ShoalError(
      'internal',
      `[${a.shape.join(', ')}] and [${b.shape.join(', ')}] do not multiply`,
    )
  }
  return single(graph, 'MatMul', [a, b], [...a.shape.slice(0, -1), extentOf(b, rank - 1)])
}

export interface GemmOptions {
  transposeA?: boolean
  transposeB?: boolean
  /** Added to the product; broadcast over rows. */
  bias?: Tensor
}

/** Product of two matrices, each transposed on demand. */
export function gemm(graph: Graph, a: Tensor, b: Tensor, options: GemmOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, bias } = options
  const [rows, innerA] = transposeA
    ? [extentOf(a, 1), extentOf(a, 0)]
    : [extentOf(a, 0), extentOf(a, 1)]
  const [innerB, columns] = transposeB
    ? [extentOf(b, 1), extentOf(b, 0)]
    : [extentOf(b, 0), extentOf(b, 1)]
  if (innerA !== innerB) {
    throw new ShoalError(
      'internal',
      `[${a.shape.join(', ')}] and [${b.shape.join(', ')}] do not multiply`,
    )
  }
  return single(graph, 'Gemm', bias === undefined ? [a, b] : [a, b, bias], [rows, columns], {
    attributes: { transA: { int: +transposeA }, transB: { int: +transposeB } },
  })
}

/** Rows of `table` [rows, columns] at `indices` [n]: [n, columns]. */
export function gather(graph: Graph, table: Tensor, indices: Tensor): Tensor {
  return single(graph, 'Gather', [table, indices], [...indices.shape, extentOf(table, 1)], {
    attributes: { axis: { int: 0 } },
  })
}

/** `indices` [n] as rows of `depth` zeros with `value` at the index: [n, depth]. */
export function oneHot(graph: Graph, indices: Tensor, depth: number, value: number): Tensor {
  const inputs = [
    indices,
    graph.constant('int32', [depth]),
    graph.constant('float32', [0, value], [2]),
  ]
  return single(graph, 'OneHot', inputs, [...indices.shape, depth], { type: 'float32' })
}

/** Over the last axis. */
export function softmax(graph: Graph, operator: 'Softmax' | 'LogSoftmax', x: Tensor): Tensor {
  return single(graph, operator, [x], x.shape, { attributes: { axis: { int: -1 } } })
}

/** Over the last axis: normalised values, and per row mean and inverse standard deviation. */
export function layerNormalization(
  graph: Graph,
  x: Tensor,
  gain: Tensor,
  bias: Tensor,
  epsilon: number,
): { output: Tensor; mean: Tensor; inverseDeviation: Tensor } {
  const row = [...x.shape.slice(0, -1), 1]
  const [output, mean, inverseDeviation] = graph.node(
    'LayerNormalization',
    [x, gain, bias],
    [x.shape, row, row].map((shape) => ({ type: x.type, shape })),
    { axis: { int: -1 }, epsilon: { float: epsilon } },
  )
  if (output === undefined || mean === undefined || inverseDeviation === undefined) {
    throw new ShoalError('internal', 'LayerNormalization made no output')
  }
  return { output, mean, inverseDeviation }
}

/** Extent of one axis of a tensor; throws `internal` when it has no such axis. */
export function extentOf(x: Tensor, axis: number): number {
  const extent = x.shape[axis]
  if (extent === undefined) {
    throw new ShoalError(
      'internal',
      `${x.name} of shape [${x.shape.join(', ')}] has no axis ${axis}`,
    )
  }
  return extent
}
