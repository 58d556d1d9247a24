/** Differentiable elementwise operations. */
import type { Graph, Tensor } from './graph.ts'
import { binary, reduce, reshape, unary } from './operators.ts'

/** Sum of two tensors of one shape: the residual connection. */
export function add(graph: Graph, a: Tensor, b: Tensor): Tensor {
  const same = (gradient: Tensor): Tensor => gradient
  return graph.differentiable(binary(graph, 'Add', a, b), [a, b], same, same)
}

/** `x` [items * n, columns] plus `rows` [n, columns], the same for every item. */
export function addToEach(graph: Graph, x: Tensor, rows: Tensor, items: number): Tensor {
  const apart = [items, ...rows.shape]
  const sum = binary(graph, 'Add', reshape(graph, x, apart), rows)
  return graph.differentiable(
    reshape(graph, sum, x.shape),
    [x, rows],
    (gradient) => gradient,
    (gradient) => reduce(graph, 'ReduceSum', reshape(graph, gradient, apart), 0, false),
  )
}

/** max(x, 0)²: So et al. 2021, "Primer", arXiv:2109.08668. One pass cheaper than gelu in both directions. */
export function reluSquared(graph: Graph, x: Tensor): Tensor {
  const positive = unary(graph, 'Relu', x)
  return graph.differentiable(binary(graph, 'Mul', positive, positive), [x], (gradient) =>
    binary(graph, 'Mul', gradient, binary(graph, 'Add', positive, positive)),
  )
}

/** x Φ(x), exact: Hendrycks and Gimpel 2016, arXiv:1606.08415. Derivative Φ(x) + x φ(x). */
export function gelu(graph: Graph, x: Tensor): Tensor {
  const scaled = binary(graph, 'Mul', x, Math.SQRT1_2)
  const half = binary(graph, 'Mul', unary(graph, 'Erf', scaled), 0.5)
  const distribution = binary(graph, 'Add', half, 0.5)
  return graph.differentiable(binary(graph, 'Mul', x, distribution), [x], (gradient) => {
    const exponent = binary(graph, 'Mul', binary(graph, 'Mul', x, x), -0.5)
    const density = binary(graph, 'Mul', unary(graph, 'Exp', exponent), 1 / Math.sqrt(2 * Math.PI))
    const slope = binary(graph, 'Add', distribution, binary(graph, 'Mul', x, density))
    return binary(graph, 'Mul', gradient, slope)
  })
}
