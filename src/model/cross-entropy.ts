/** Differentiable loss of next-token prediction. */
import type { Graph, Tensor } from './graph.ts'
import { binary, extentOf, oneHot, reduce, reshape, softmax, unary } from './operators.ts'

/** Mean over rows of -log softmax(logits)[target], in nats: logits [n, vocabulary], targets [n], result a scalar. */
export function crossEntropy(graph: Graph, logits: Tensor, targets: Tensor): Tensor {
  const share = 1 / extentOf(logits, 0)
  const logProbabilities = softmax(graph, 'LogSoftmax', logits)
  const chosen = oneHot(graph, targets, extentOf(logits, 1), share)
  const picked = reduce(
    graph,
    'ReduceSum',
    binary(graph, 'Mul', logProbabilities, chosen),
    1,
    false,
  )
  const loss = binary(graph, 'Mul', reduce(graph, 'ReduceSum', picked, 0, false), -1)
  return graph.differentiable(reshape(graph, loss, []), [logits], (gradient) => {
    const probabilities = binary(graph, 'Mul', unary(graph, 'Exp', logProbabilities), share)
    return binary(graph, 'Mul', binary(graph, 'Sub', probabilities, chosen), gradient)
  })
}
