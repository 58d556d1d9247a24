/**
 * Writes a graph as an ONNX model: protobuf by hand, for the two dozen fields we need.
 *
 * Field numbers and types: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Same graph, same bytes.
 */
import { ShoalError } from '../errors.ts'
import type { Attribute, Constant, ElementType, Graph, Tensor } from './graph.ts'

/** IR version 8 is what opset 18 was released with; older readers refuse newer files. */
const IR_VERSION = 8
const OPSET = 18

/** `TensorProto.DataType`. */
const ELEMENT_TYPES: Record<ElementType, number> = { float32: 1, int32: 6, int64: 7, bool: 9 }

/** `AttributeProto.AttributeType`. */
const ATTRIBUTE_TYPES = { float: 1, int: 2, ints: 7 } as const

/** ONNX bytes of `graph`, for `InferenceSession.create`. */
export function encodeOnnx(graph: Graph): Uint8Array {
  const renamed = outputNames(graph)
  const nameOf = ({ name }: Tensor): string => renamed.get(name) ?? name
  const body = message()
  for (const { operator, inputs, outputs, attributes } of graph.nodes) {
    const node = message()
    for (const input of inputs) node.text(1, nameOf(input))
    for (const output of outputs) node.text(2, nameOf(output))
    node.text(4, operator)
    for (const [name, attribute] of Object.entries(attributes)) {
      node.bytes(5, encodeAttribute(name, attribute))
    }
    body.bytes(1, node.finish())
  }
  for (const { name, source } of copies(graph, renamed)) {
    const node = message()
    node.text(1, source)
    node.text(2, name)
    node.text(4, 'Identity')
    body.bytes(1, node.finish())
  }
  body.text(2, 'shoal')
  for (const constant of graph.constants) body.bytes(5, encodeConstant(constant))
  for (const input of graph.inputs) body.bytes(11, encodeValue(input.name, input))
  for (const { name, tensor } of graph.outputs) body.bytes(12, encodeValue(name, tensor))

  const opset = message()
  opset.integer(2, OPSET)
  const model = message()
  model.integer(1, IR_VERSION)
  model.text(2, 'shoal')
  model.bytes(7, body.finish())
  model.bytes(8, opset.finish())
  return model.finish()
}

/** A node's value that is an output of the graph takes the output's name; what has one already is copied. */
function outputNames(graph: Graph): Map<string, string> {
  const made = new Set(graph.nodes.flatMap(({ outputs }) => outputs.map(({ name }) => name)))
  const renamed = new Map<string, string>()
  for (const { name, tensor } of graph.outputs) {
    if (graph.inputs.some((input) => input.name === name) || made.has(name)) {
      throw new ShoalError('internal', `the name of output ${name} is taken`)
    }
    if (made.has(tensor.name) && !renamed.has(tensor.name)) renamed.set(tensor.name, name)
  }
  return renamed
}

function copies(graph: Graph, renamed: Map<string, string>): { name: string; source: string }[] {
  return graph.outputs
    .filter(({ name, tensor }) => renamed.get(tensor.name) !== name)
    .map(({ name, tensor }) => ({ name, source: renamed.get(tensor.name) ?? tensor.name }))
}

function encodeAttribute(name: string, attribute: Attribute): Uint8Array {
  const out = message()
  out.text(1, name)
  if ('float' in attribute) {
    out.float(2, attribute.float)
    out.integer(20, ATTRIBUTE_TYPES.float)
  } else if ('int' in attribute) {
    out.integer(3, attribute.int)
    out.integer(20, ATTRIBUTE_TYPES.int)
  } else {
    for (const value of attribute.ints) out.integer(8, value)
    out.integer(20, ATTRIBUTE_TYPES.ints)
  }
  return out.finish()
}

function encodeConstant({ tensor, values }: Constant): Uint8Array {
  const out = message()
  for (const extent of tensor.shape) out.integer(1, extent)
  out.integer(2, ELEMENT_TYPES[tensor.type])
  out.text(8, tensor.name)
  out.bytes(9, rawData(tensor.type, values))
  return out.finish()
}

/** `raw_data`: elements in fixed width, little-endian on every machine. */
function rawData(type: ElementType, values: readonly number[]): Uint8Array {
  const width = { float32: 4, int32: 4, int64: 8, bool: 1 }[type]
  const view = new DataView(new ArrayBuffer(values.length * width))
  values.forEach((value, index) => {
    const at = index * width
    if (type === 'float32') view.setFloat32(at, value, true)
    else if (type === 'int32') view.setInt32(at, value, true)
    else if (type === 'int64') view.setBigInt64(at, BigInt(value), true)
    else view.setUint8(at, value)
  })
  return new Uint8Array(view.buffer)
}

function encodeValue(name: string, { type, shape }: Tensor): Uint8Array {
  const extents = message()
  for (const extent of shape) {
    const dimension = message()
    dimension.integer(1, extent)
    extents.bytes(1, dimension.finish())
  }
  const tensorType = message()
  tensorType.integer(1, ELEMENT_TYPES[type])
  tensorType.bytes(2, extents.finish())
  const typed = message()
  typed.bytes(1, tensorType.finish())
  const out = message()
  out.text(1, name)
  out.bytes(2, typed.finish())
  return out.finish()
}

interface Message {
  integer(field: number, value: number): void
  float(field: number, value: number): void
  text(field: number, value: string): void
  bytes(field: number, value: Uint8Array): void
  finish(): Uint8Array
}

/** One protobuf message: fields in the order they are given. */
function message(): Message {
  const parts: Uint8Array[] = []
  const utf8 = new TextEncoder()
  /** Base-128 digits, low first; negative numbers as 64-bit two's complement. */
  const varint = (value: number): Uint8Array => {
    if (!Number.isSafeInteger(value)) {
      throw new ShoalError('internal', `${value} is no integer that a model file can hold`)
    }
    const digits: number[] = []
    let rest = BigInt.asUintN(64, BigInt(value))
    while (rest > 127n) {
      digits.push(Number(rest & 127n) | 128)
      rest >>= 7n
    }
    digits.push(Number(rest))
    return Uint8Array.from(digits)
  }
  const bytes = (field: number, value: Uint8Array): void => {
    parts.push(varint(field * 8 + 2), varint(value.length), value)
  }
  return {
    integer: (field, value) => void parts.push(varint(field * 8), varint(value)),
    float: (field, value) => {
      const encoded = new DataView(new ArrayBuffer(4))
      encoded.setFloat32(0, value, true)
      parts.push(varint(field * 8 + 5), new Uint8Array(encoded.buffer))
    },
    text: (field, value) => bytes(field, utf8.encode(value)),
    bytes,
    finish: () => {
      const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
      let at = 0
      for (const part of parts) {
        whole.set(part, at)
        at += part.length
      }
      return whole
    },
  }
}
