/** Differentiable layer normalization: Ba et al. 2016, arXiv:1607.06450. */
import type { Graph, Tensor } from './graph.ts'
import { binary, layerNormalization, reduce } from './operators.ts'

/** Added to the variance; the value of GPT-2. */
export const LAYER_NORM_EPSILON = 1e-5

/** Rows of x [n, columns] to mean 0 and variance 1, times gain [columns], plus bias [columns]. */
export function layerNorm(graph: Graph, x: Tensor, gain: Tensor, bias: Tensor): Tensor {
  const { output, mean, inverseDeviation } = layerNormalization(
    graph,
    x,
    gain,
    bias,
    LAYER_NORM_EPSILON,
  )
  const normalised = (): Tensor =>
    binary(graph, 'Mul', binary(graph, 'Sub', x, mean), inverseDeviation)
  return graph.differentiable(
    output,
    [x, gain, bias],
    (gradient) => {
      // With n = (x - mean) / deviation and g = gradient * gain: (g - mean(g) - n * mean(g * n)) / deviation.
      const g = binary(graph, 'Mul', gradient, gain)
      const along = reduce(graph, 'ReduceMean', binary(graph, 'Mul', g, normalised()), 1, true)
      const centred = binary(graph, 'Sub', g, reduce(graph, 'ReduceMean', g, 1, true))
      const projected = binary(graph, 'Sub', centred, binary(graph, 'Mul', normalised(), along))
      return binary(graph, 'Mul', projected, inverseDeviation)
    },
    (gradient) =>
      reduce(graph, 'ReduceSum', binary(graph, 'Mul', gradient, normalised()), 0, false),
    (gradient) => reduce(graph, 'ReduceSum', gradient, 0, false),
  )
}
