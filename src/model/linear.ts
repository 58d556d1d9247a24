/** Differentiable products with a parameter matrix. */
import type { Graph, Tensor } from './graph.ts'
import { gemm, reduce } from './operators.ts'

/** x [n, inputs] · weight [inputs, outputs] + bias [outputs]. */
export function linear(graph: Graph, x: Tensor, weight: Tensor, bias: Tensor): Tensor {
  return graph.differentiable(
    gemm(graph, x, weight, { bias }),
    [x, weight, bias],
    (gradient) => gemm(graph, gradient, weight, { transposeB: true }),
    (gradient) => gemm(graph, x, gradient, { transposeA: true }),
    (gradient) => reduce(graph, 'ReduceSum', gradient, 0, false),
  )
}

/** x [n, columns] · tableᵀ, table [rows, columns]: the output head tied to the embedding. */
export function tiedHead(graph: Graph, x: Tensor, table: Tensor): Tensor {
  return graph.differentiable(
    gemm(graph, x, table, { transposeB: true }),
    [x, table],
    (gradient) => gemm(graph, gradient, table),
    (gradient) => gemm(graph, gradient, x, { transposeA: true }),
  )
}
