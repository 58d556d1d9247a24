/**
 * Layout of a model's parameters in one flat vector.
 *
 * Everything numeric in Shoal is a loop over slices of that vector; the schema only says where each tensor lies.
 */
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { hashOf } from '../random.ts'

export interface SchemaEntry {
  readonly name: string
  readonly shape: readonly number[]
  /** First element in the flat vector. */
  readonly offset: number
  /** Number of elements. */
  readonly size: number
  /** Whether weight decay applies (matrices yes, gains and biases no). */
  readonly decay: boolean
}

export interface Schema {
  readonly entries: readonly SchemaEntry[]
  /** Elements in all. */
  readonly size: number
}

export interface TensorDeclaration {
  name: string
  shape: readonly number[]
  decay: boolean
}

/** Lays tensors out in the order given, without gaps. Throws `spec_invalid` on duplicates or absurd sizes. */
export function createSchema(tensors: readonly TensorDeclaration[]): Schema {
  if (tensors.length === 0 || tensors.length > LIMITS.tensors) {
    throw new ShoalError(
      'spec_invalid',
      `a model has 1 to ${LIMITS.tensors} tensors, not ${tensors.length}`,
    )
  }
  const names = new Set<string>()
  const entries: SchemaEntry[] = []
  let offset = 0
  for (const { name, shape, decay } of tensors) {
    if (names.has(name)) throw new ShoalError('spec_invalid', `tensor ${name} is declared twice`)
    names.add(name)
    if (!shape.every((extent) => Number.isSafeInteger(extent) && extent > 0)) {
      throw new ShoalError('spec_invalid', `tensor ${name} has a bad shape [${shape.join(', ')}]`)
    }
    const size = shape.reduce((product, extent) => product * extent, 1)
    entries.push({ name, shape, offset, size, decay })
    offset += size
    if (offset > LIMITS.parameters) {
      throw new ShoalError(
        'spec_invalid',
        `the model is larger than ${LIMITS.parameters} parameters`,
      )
    }
  }
  return { entries, size: offset }
}

/** sha-256 (hex) over names and shapes in order: peers whose hashes differ must not average. */
export function schemaHash(schema: Schema): string {
  return hashOf(...schema.entries.flatMap(({ name, shape }) => [name, shape.join('x')]))
}
