/** Differentiable table look-up. */
import type { Graph, Tensor } from './graph.ts'
import { extentOf, gather, gemm, oneHot } from './operators.ts'

/**
 * Rows of `table` [rows, columns] at `tokens` [n]: [n, columns].
 *
 * The gradient is a product with the one-hot matrix of the tokens: at most a third of the tied head's cost, and
 * deterministic, which a scatter with addition over several threads is not.
 */
export function embedding(graph: Graph, table: Tensor, tokens: Tensor): Tensor {
  return graph.differentiable(gather(graph, table, tokens), [table], (gradient) =>
    gemm(graph, oneHot(graph, tokens, extentOf(table, 0), 1), gradient, { transposeA: true }),
  )
}
