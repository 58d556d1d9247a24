/** Differentiable causal multi-head self-attention: Vaswani et al. 2017, arXiv:1706.03762. */
import { ShoalError } from '../errors.ts'
import type { Graph, Tensor } from './graph.ts'
import {
  binary,
  concat,
  extentOf,
  matmul,
  reduce,
  reshape,
  softmax,
  split,
  transpose,
  where,
} from './operators.ts'

export interface AttentionShape {
  sequences: number
  /** Tokens of a sequence. */
  context: number
  heads: number
}

/** What a score in the future gets added: large enough that its softmax is exactly zero in float32. */
const MASKED = -1e9

/**
 * qkv [sequences * context, 3 * embedding], queries, keys and values side by side, to [sequences * context, embedding].
 * A token sees itself and what is before it in its own sequence.
 *
 * The gradient of the scores uses sum(P dP) = sum(O dO) per row (Dao et al. 2022, arXiv:2205.14135, appendix B.2),
 * which is a reduction over the head's width instead of over the context.
 */
export function causalAttention(graph: Graph, qkv: Tensor, shape: AttentionShape): Tensor {
  const { sequences, context, heads } = shape
  const embedding = extentOf(qkv, 1) / 3
  const width = embedding / heads
  const perHead = [sequences, heads, context, width]
  const [query, key, value] = split(
    graph,
    transpose(graph, reshape(graph, qkv, [sequences, context, 3, heads, width]), [2, 0, 3, 1, 4]),
    0,
    3,
  ).map((part) => reshape(graph, part, perHead))
  if (query === undefined || key === undefined || value === undefined) {
    throw new ShoalError('internal', 'attention needs queries, keys and values')
  }
  const scale = 1 / Math.sqrt(width)
  const swap = (x: Tensor): Tensor => transpose(graph, x, [0, 1, 3, 2])
  const scores = binary(graph, 'Mul', matmul(graph, query, swap(key)), scale)
  const masked = binary(graph, 'Add', scores, causalMask(graph, context))
  const probabilities = softmax(graph, 'Softmax', masked)
  const mixed = matmul(graph, probabilities, value)
  const output = reshape(graph, transpose(graph, mixed, [0, 2, 1, 3]), [
    sequences * context,
    embedding,
  ])
  return graph.differentiable(output, [qkv], (gradient) => {
    const byToken = reshape(graph, gradient, [sequences, context, heads, width])
    const outer = transpose(graph, byToken, [0, 2, 1, 3])
    const along = reduce(graph, 'ReduceSum', binary(graph, 'Mul', outer, mixed), 3, true)
    const inner = binary(graph, 'Sub', matmul(graph, outer, swap(value)), along)
    const score = binary(graph, 'Mul', probabilities, inner)
    const parts = [
      binary(graph, 'Mul', matmul(graph, score, key), scale),
      binary(graph, 'Mul', matmul(graph, swap(score), query), scale),
      matmul(graph, swap(probabilities), outer),
    ].map((part) => reshape(graph, part, [1, ...perHead]))
    const joined = transpose(graph, concat(graph, parts, 0), [1, 3, 0, 2, 4])
    return reshape(graph, joined, qkv.shape)
  })
}

/** [context, context]: zero up to the diagonal, `MASKED` above. Computed, so that it takes no room in the file. */
function causalMask(graph: Graph, context: number): Tensor {
  const positions = Array.from({ length: context }, (_, position) => position)
  const future = binary(
    graph,
    'Greater',
    graph.constant('int32', positions, [1, context]),
    graph.constant('int32', positions, [context, 1]),
  )
  return where(graph, future, graph.constant('float32', [MASKED]), graph.constant('float32', [0]))
}
