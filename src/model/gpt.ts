/**
 * The built-in model: a GPT in the layout of GPT-2 (Radford et al. 2019), so that exports load elsewhere unchanged.
 *
 * Learned positions; pre-LayerNorm with gain and bias; fused query-key-value projection; MLP of width 4 with squared
 * ReLU or exact gelu; biases everywhere; output head tied to the embedding; no dropout. Tensor names and shapes
 * ([inputs, outputs] for matrices) are those of Hugging Face's `GPT2LMHeadModel`.
 */
import { ShoalError } from '../errors.ts'
import { createSchema, type Schema, type TensorDeclaration } from '../tensor/schema.ts'
import { causalAttention } from './attention.ts'
import { crossEntropy } from './cross-entropy.ts'
import { add, addToEach, gelu, reluSquared } from './elementwise.ts'
import { embedding } from './embedding.ts'
import { gradients } from './gradient.ts'
import { createGraph, type Graph, type Tensor } from './graph.ts'
import { linear, tiedHead } from './linear.ts'
import { layerNorm } from './normalization.ts'
import { encodeOnnx } from './onnx.ts'
import { gather, reshape } from './operators.ts'

export interface GptSpec {
  readonly layers: number
  readonly heads: number
  /** Width of a token's vector; a multiple of `heads`. */
  readonly embedding: number
  /** Tokens of one sequence. */
  readonly context: number
  readonly vocabulary: number
  readonly activation: 'relu-squared' | 'gelu'
}

/** Name of the gradient of a parameter among the outputs of `trainingGraph`. */
export const gradientName = (parameter: string): string => `gradient.${parameter}`

/** The model's tensors in the order of the flat vector. Throws `spec_invalid` when the sizes do not fit together. */
export function gptSchema(spec: GptSpec): Schema {
  const { embedding: width, heads } = spec
  if (width % heads !== 0) {
    throw new ShoalError(
      'spec_invalid',
      `embedding ${width} is no multiple of ${heads} heads; choose one that is`,
    )
  }
  const matrix = (name: string, rows: number, columns: number): TensorDeclaration => ({
    name: `${name}.weight`,
    shape: [rows, columns],
    decay: true,
  })
  const vector = (name: string, size: number): TensorDeclaration => ({
    name,
    shape: [size],
    decay: false,
  })
  const dense = (name: string, inputs: number, outputs: number): TensorDeclaration[] => [
    matrix(name, inputs, outputs),
    vector(`${name}.bias`, outputs),
  ]
  const norm = (name: string): TensorDeclaration[] => [
    vector(`${name}.weight`, width),
    vector(`${name}.bias`, width),
  ]
  const block = (name: string): TensorDeclaration[][] => [
    norm(`${name}.ln_1`),
    dense(`${name}.attn.c_attn`, width, 3 * width),
    dense(`${name}.attn.c_proj`, width, width),
    norm(`${name}.ln_2`),
    dense(`${name}.mlp.c_fc`, width, 4 * width),
    dense(`${name}.mlp.c_proj`, 4 * width, width),
  ]
  const tensors = [matrix('transformer.wte', spec.vocabulary, width)]
  tensors.push(matrix('transformer.wpe', spec.context, width))
  for (let layer = 0; layer < spec.layers; layer += 1)
    tensors.push(...block(blockName(layer)).flat())
  tensors.push(...norm('transformer.ln_f'))
  return createSchema(tensors)
}

const blockName = (layer: number): string => `transformer.h.${layer}`

/**
 * One inner step's forward and backward pass over `sequences` sequences, as ONNX.
 *
 * Inputs: int32 `tokens` and `targets` [sequences * context], sequence after sequence, and every parameter by name.
 * Outputs: `loss`, the mean cross-entropy in nats per token (a scalar), and `gradient.<parameter>` for each parameter.
 */
export function trainingGraph(spec: GptSpec, sequences: number): Uint8Array {
  const graph = createGraph()
  const parameters = parameterInputs(graph, spec)
  const loss = batchLoss(graph, spec, sequences, parameters)
  graph.output('loss', loss)
  const names = [...parameters.keys()]
  gradients(graph, loss, [...parameters.values()]).forEach((gradient, index) => {
    graph.output(gradientName(names[index] ?? ''), gradient)
  })
  return encodeOnnx(graph)
}

/** As `trainingGraph`, but with `loss` as the only output. */
export function evaluationGraph(spec: GptSpec, sequences: number): Uint8Array {
  const graph = createGraph()
  graph.output('loss', batchLoss(graph, spec, sequences, parameterInputs(graph, spec)))
  return encodeOnnx(graph)
}

/**
 * Next-token logits after one position. Inputs: int32 `tokens` [context], of which those after the position are
 * ignored, int32 `position` [1], and every parameter by name. Output: `logits` [vocabulary].
 */
export function samplingGraph(spec: GptSpec): Uint8Array {
  const graph = createGraph()
  const parameters = parameterInputs(graph, spec)
  const tokens = graph.input('tokens', 'int32', [spec.context])
  const position = graph.input('position', 'int32', [1])
  const hidden = gather(graph, hiddenStates(graph, spec, 1, parameters, tokens), position)
  const logits = tiedHead(graph, hidden, parameterOf(parameters, 'transformer.wte.weight'))
  graph.output('logits', reshape(graph, logits, [spec.vocabulary]))
  return encodeOnnx(graph)
}

function parameterInputs(graph: Graph, spec: GptSpec): Map<string, Tensor> {
  return new Map(
    gptSchema(spec).entries.map(({ name, shape }) => [name, graph.input(name, 'float32', shape)]),
  )
}

function parameterOf(parameters: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const parameter = parameters.get(name)
  if (parameter === undefined)
    throw new ShoalError('internal', `the model has no parameter ${name}`)
  return parameter
}

function batchLoss(
  graph: Graph,
  spec: GptSpec,
  sequences: number,
  parameters: ReadonlyMap<string, Tensor>,
): Tensor {
  const tokens = graph.input('tokens', 'int32', [sequences * spec.context])
  const targets = graph.input('targets', 'int32', [sequences * spec.context])
  const hidden = hiddenStates(graph, spec, sequences, parameters, tokens)
  const logits = tiedHead(graph, hidden, parameterOf(parameters, 'transformer.wte.weight'))
  return crossEntropy(graph, logits, targets)
}

/** What the head sees of each token: [sequences * context, embedding]. */
function hiddenStates(
  graph: Graph,
  spec: GptSpec,
  sequences: number,
  parameters: ReadonlyMap<string, Tensor>,
  tokens: Tensor,
): Tensor {
  const { context, heads } = spec
  const of = (name: string): Tensor => parameterOf(parameters, name)
  const dense = (x: Tensor, name: string): Tensor =>
    linear(graph, x, of(`${name}.weight`), of(`${name}.bias`))
  const norm = (x: Tensor, name: string): Tensor =>
    layerNorm(graph, x, of(`${name}.weight`), of(`${name}.bias`))
  const activation = spec.activation === 'gelu' ? gelu : reluSquared

  const embedded = embedding(graph, of('transformer.wte.weight'), tokens)
  let x = addToEach(graph, embedded, of('transformer.wpe.weight'), sequences)
  for (let layer = 0; layer < spec.layers; layer += 1) {
    const block = blockName(layer)
    const qkv = dense(norm(x, `${block}.ln_1`), `${block}.attn.c_attn`)
    const mixed = causalAttention(graph, qkv, { sequences, context, heads })
    x = add(graph, x, dense(mixed, `${block}.attn.c_proj`))
    const expanded = activation(graph, dense(norm(x, `${block}.ln_2`), `${block}.mlp.c_fc`))
    x = add(graph, x, dense(expanded, `${block}.mlp.c_proj`))
  }
  return norm(x, 'transformer.ln_f')
}
