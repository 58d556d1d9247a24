/**
 * A graph of plain ONNX operators under construction.
 *
 * Contract: all shapes are static and known when a node is added; a node equal to an earlier one (operator, inputs,
 * attributes) is that earlier one, so that gradients may name an intermediate value again without paying twice.
 */
import { ShoalError } from '../errors.ts'

export type ElementType = 'float32' | 'int32' | 'int64' | 'bool'

/** A value of the graph: an input, a constant or the output of a node. */
export interface Tensor {
  readonly name: string
  readonly type: ElementType
  readonly shape: readonly number[]
}

export type Attribute = { int: number } | { float: number } | { ints: readonly number[] }

export interface GraphNode {
  readonly operator: string
  readonly inputs: readonly Tensor[]
  readonly outputs: readonly Tensor[]
  readonly attributes: Readonly<Record<string, Attribute>>
}

export interface Constant {
  readonly tensor: Tensor
  readonly values: readonly number[]
}

/** How a node's output depends on its inputs; `gradients` walks these backwards (see `gradient.ts`). */
export interface Derivative {
  readonly output: Tensor
  readonly inputs: readonly Tensor[]
  /** Per input: the vector-Jacobian product, from the gradient of the output to that of the input. */
  readonly products: readonly ((gradient: Tensor) => Tensor)[]
}

export interface Graph {
  readonly inputs: readonly Tensor[]
  readonly outputs: readonly { name: string; tensor: Tensor }[]
  readonly constants: readonly Constant[]
  readonly nodes: readonly GraphNode[]
  readonly derivatives: readonly Derivative[]
  input(name: string, type: ElementType, shape: readonly number[]): Tensor
  /** A constant in the file; keep them small (masks and the like are computed, and folded when a session opens). */
  constant(type: ElementType, values: readonly number[], shape?: readonly number[]): Tensor
  /** Adds one node; `outputs` gives type and shape of each of its outputs. */
  node(
    operator: string,
    inputs: readonly Tensor[],
    outputs: readonly Pick<Tensor, 'type' | 'shape'>[],
    attributes?: Readonly<Record<string, Attribute>>,
  ): Tensor[]
  /** Makes `output` differentiable in `inputs` and returns it. */
  differentiable(
    output: Tensor,
    inputs: readonly Tensor[],
    ...products: ((gradient: Tensor) => Tensor)[]
  ): Tensor
  /** Gives the graph an output of this name. */
  output(name: string, tensor: Tensor): void
}

export function createGraph(): Graph {
  const inputs: Tensor[] = []
  const outputs: { name: string; tensor: Tensor }[] = []
  const constants: Constant[] = []
  const nodes: GraphNode[] = []
  const derivatives: Derivative[] = []
  const names = new Set<string>()
  /** Nodes and constants by content. */
  const known = new Map<string, Tensor[]>()

  function named(name: string, type: ElementType, shape: readonly number[]): Tensor {
    if (names.has(name)) throw new ShoalError('internal', `the graph has two values named ${name}`)
    names.add(name)
    return { name, type, shape }
  }

  return {
    inputs,
    outputs,
    constants,
    nodes,
    derivatives,
    input(name, type, shape) {
      const tensor = named(name, type, shape)
      inputs.push(tensor)
      return tensor
    },
    constant(type, values, shape = []) {
      if (values.length !== sizeOf(shape)) {
        throw new ShoalError(
          'internal',
          `a constant of shape [${shape.join(', ')}] got ${values.length} values`,
        )
      }
      const key = JSON.stringify([type, values.map(textOf), shape])
      const [same] = known.get(key) ?? []
      if (same !== undefined) return same
      const tensor = named(`constant_${constants.length}`, type, shape)
      constants.push({ tensor, values })
      known.set(key, [tensor])
      return tensor
    },
    node(operator, nodeInputs, declared, attributes = {}) {
      const key = JSON.stringify([operator, nodeInputs.map(({ name }) => name), attributes])
      const same = known.get(key)
      if (same !== undefined) return same
      const made = declared.map(({ type, shape }, index) =>
        named(`${operator}_${nodes.length}${index === 0 ? '' : `_${index}`}`, type, shape),
      )
      nodes.push({ operator, inputs: nodeInputs, outputs: made, attributes })
      known.set(key, made)
      return made
    },
    differentiable(output, from, ...products) {
      if (products.length !== from.length) {
        throw new ShoalError(
          'internal',
          `${output.name} has ${from.length} inputs and ${products.length} gradients`,
        )
      }
      derivatives.push({ output, inputs: from, products })
      return output
    },
    output(name, tensor) {
      if (outputs.some((other) => other.name === name)) {
        throw new ShoalError('internal', `the graph has two outputs named ${name}`)
      }
      outputs.push({ name, tensor })
    },
  }
}

/** Elements of a tensor of this shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1)
}

/** Tells -0 from 0 and keeps infinities, which JSON does not. */
const textOf = (value: number): string => (Object.is(value, -0) ? '-0' : String(value))
