/** Reverse-mode differentiation: emits the backward pass of a graph into the same graph. */
import { ShoalError } from '../errors.ts'
import type { Graph, Tensor } from './graph.ts'
import { binary } from './operators.ts'

/**
 * Adds to the graph the gradients of `output` with respect to `variables`, and returns them in that order.
 *
 * `seed` is the gradient of `output` itself, 1 unless given: with a seed of the output's shape the results are
 * vector-Jacobian products. Throws `internal` for a variable on which the output does not depend.
 */
export function gradients(
  graph: Graph,
  output: Tensor,
  variables: readonly Tensor[],
  seed: Tensor = graph.constant('float32', [1]),
): Tensor[] {
  const dependent = new Set(variables.map(({ name }) => name))
  const path = graph.derivatives.filter((derivative) => {
    const depends = derivative.inputs.some(({ name }) => dependent.has(name))
    if (depends) dependent.add(derivative.output.name)
    return depends
  })
  const gradientOf = new Map<string, Tensor>([[output.name, seed]])
  for (const { output: result, inputs, products } of path.toReversed()) {
    const gradient = gradientOf.get(result.name)
    if (gradient === undefined) continue
    inputs.forEach((input, index) => {
      const product = products[index]
      if (product === undefined || !dependent.has(input.name)) return
      const part = product(gradient)
      const sum = gradientOf.get(input.name)
      gradientOf.set(input.name, sum === undefined ? part : binary(graph, 'Add', sum, part))
    })
  }
  return variables.map(({ name }) => {
    const gradient = gradientOf.get(name)
    if (gradient === undefined) {
      throw new ShoalError('internal', `${output.name} does not depend on ${name}`)
    }
    return gradient
  })
}
