/**
 * safetensors files to and from flat vectors (https://github.com/huggingface/safetensors, "Format").
 *
 * A file is: length of the header as u64 little-endian; header, a JSON object of tensors
 * `{name: {dtype, shape, data_offsets: [begin, end)}}` and optionally `__metadata__: {string: string}`, padded with
 * spaces; data, little-endian and row-major. The tensors cover the data without gap or overlap.
 *
 * The reader takes the file as a stream, so that neither side ever holds more than one vector and one piece. The file
 * is hostile: nothing is allocated on its word, and every departure from the schema is a `tensors_invalid` fault.
 */
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { float32Bytes, toHostOrder } from './float32-bytes.ts'
import { createSchema, type Schema, type SchemaEntry } from './schema.ts'
import { isFiniteVector, slicesOf } from './vector.ts'

const LENGTH_BYTES = 8
const METADATA = '__metadata__'
/** Names of tensors nobody here has chosen: printable, so that they can be told in a message of one line. */
export const TENSOR_NAME = /^[!#-[\]-~]{1,256}$/
/**
 * Refused in any name. V8 (of Node 24.21) takes the key `"\""` for a backslash when the object parsed before had that key
 * in its place: such tensors could be mistaken for one another.
 */
const ESCAPED = /["\\]/

const tensorSchema = z.strictObject({
  dtype: z.string().max(16),
  shape: z.array(z.number().int().min(0)).max(16),
  data_offsets: z.tuple([z.number().int().min(0), z.number().int().min(0)]),
})
type TensorHeader = z.infer<typeof tensorSchema>
const metadataSchema = z.record(z.string(), z.string())

/** Length and header of a file that holds `schema`, ready to be followed by the vector's bytes in order. */
export function safetensorsHeader(
  schema: Schema,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array<ArrayBuffer> {
  const entries: [string, unknown][] = schema.entries.map(({ name, shape, offset, size }) => [
    name,
    { dtype: 'F32', shape, data_offsets: [4 * offset, 4 * (offset + size)] },
  ])
  if (Object.keys(metadata).length > 0) entries.unshift([METADATA, metadata])
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)))
  // Padded to 8 bytes, so that readers can map the data as aligned float32.
  const headerBytes = Math.ceil(json.length / 8) * 8
  const header = new Uint8Array(LENGTH_BYTES + headerBytes).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(headerBytes), true)
  header.set(json, LENGTH_BYTES)
  return header
}

/**
 * A file of the parameters and its length in bytes. The content is made while it is read, slice by slice; its pieces
 * may share the vector's memory. Python's `transformers` wants the metadata `{format: 'pt'}`.
 */
export function writeSafetensors(
  schema: Schema,
  parameters: Float32Array,
  metadata: Readonly<Record<string, string>> = {},
): { bytes: number; content: AsyncIterable<Uint8Array> } {
  if (parameters.length !== schema.size) {
    throw new ShoalError(
      'internal',
      `a vector of ${parameters.length} elements is no ${schema.size} parameters`,
    )
  }
  const header = safetensorsHeader(schema, metadata)
  return {
    bytes: header.byteLength + 4 * schema.size,
    content: {
      async *[Symbol.asyncIterator]() {
        yield header
        for (const [from, to] of slicesOf(schema.size)) {
          yield float32Bytes(parameters.subarray(from, to))
        }
      },
    },
  }
}

/**
 * Reads a file whose tensors are exactly those of `schema` (any order, F32, finite) into one flat vector.
 * Throws `tensors_invalid` naming what does not fit, and leaves `target` partly written then.
 */
export async function readSafetensors(
  file: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  schema: Schema,
  target: Float32Array = new Float32Array(schema.size),
): Promise<Float32Array> {
  if (target.length !== schema.size) {
    throw new ShoalError(
      'internal',
      `${target.length} elements cannot take ${schema.size} parameters`,
    )
  }
  await readData(file, (header) => ({
    placements: placementsOf(parseHeader(header), schema),
    target,
  }))
  return target
}

/**
 * Reads a file of any F32 tensors, laid out as they lie in it. Matrices and what has more dimensions count as decayed.
 * Throws `tensors_invalid` naming what does not fit, `spec_invalid` when they are too many or too large.
 */
export async function readTensors(
  file: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<{ schema: Schema; parameters: Float32Array }> {
  let read: { schema: Schema; parameters: Float32Array } | undefined
  await readData(file, (header) => {
    const tensors = parseHeader(header)
    const odd = [...tensors.keys()].find((name) => !TENSOR_NAME.test(name))
    if (odd !== undefined) throw invalid(`${quoted(odd)} is no name for a tensor`)
    const declared = [...tensors].sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0])
    const schema = createSchema(
      declared.map(([name, { shape }]) => ({ name, shape, decay: shape.length > 1 })),
    )
    const placements = placementsOf(tensors, schema)
    const parameters = new Float32Array(schema.size)
    read = { schema, parameters }
    return { placements, target: parameters }
  })
  if (read === undefined) throw invalid('it ends within its header')
  return read
}

interface Layout {
  placements: readonly Placement[]
  target: Float32Array
}

async function readData(
  file: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  layoutOf: (header: string) => Layout,
): Promise<void> {
  const head = createHeaderBuffer()
  let writer: DataWriter | undefined
  for await (const piece of file) {
    if (writer === undefined) {
      const surplus = head.append(piece)
      if (surplus === undefined) continue
      writer = createDataWriter(layoutOf(head.text()))
      writer.write(surplus)
    } else {
      writer.write(piece)
    }
  }
  if (writer === undefined) throw invalid('it ends within its header')
  writer.end()
}

/** Collects length and header from pieces that are cut anywhere; memory follows the bytes that came. */
function createHeaderBuffer() {
  let buffer = new Uint8Array(1 << 16)
  let size = 0
  let needed = LENGTH_BYTES
  const take = (bytes: Uint8Array): void => {
    if (size + bytes.length > buffer.length) {
      const larger = new Uint8Array(2 * (size + bytes.length))
      larger.set(buffer)
      buffer = larger
    }
    buffer.set(bytes, size)
    size += bytes.length
  }
  return {
    /** Returns what follows the header once that is whole. */
    append(piece: Uint8Array): Uint8Array | undefined {
      const start = Math.max(0, Math.min(piece.length, LENGTH_BYTES - size))
      take(piece.subarray(0, start))
      if (size < LENGTH_BYTES) return undefined
      if (needed === LENGTH_BYTES) needed += headerLength(buffer)
      const rest = piece.subarray(start)
      const end = Math.min(rest.length, needed - size)
      take(rest.subarray(0, end))
      return size < needed ? undefined : rest.subarray(end)
    },
    text(): string {
      try {
        const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
        return decoder.decode(buffer.subarray(LENGTH_BYTES, size))
      } catch (cause) {
        throw invalid('its header is not UTF-8', cause)
      }
    },
  }
}

function headerLength(start: Uint8Array): number {
  const length = new DataView(start.buffer, start.byteOffset).getBigUint64(0, true)
  if (length > BigInt(LIMITS.safetensorsHeaderBytes)) {
    throw invalid(`its header claims to be ${length} bytes long`)
  }
  return Number(length)
}

/** Bytes `[begin, end)` of the file's data lie at `target` in the bytes of the vector. */
interface Placement {
  name: string
  begin: number
  end: number
  target: number
}

interface DataWriter {
  write(piece: Uint8Array): void
  /** Throws when data is missing. */
  end(): void
}

/**
 * Puts the file's data, piece after piece, to where its tensors lie in the vector. Each value is checked as soon as it
 * is whole, so that no check holds up the event loop at the end.
 */
function createDataWriter({ placements, target: vector }: Layout): DataWriter {
  const data = new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength)
  let position = 0
  let current = 0
  let checked = 0

  /** Takes what the placement has up to `end` (bytes of the vector) into the machine's order and checks it. */
  function check({ name, target }: Placement, end: number): void {
    const from = Math.max(checked, target / 4)
    const to = Math.floor(end / 4)
    toHostOrder(data.subarray(4 * from, 4 * to))
    if (!isFiniteVector(vector.subarray(from, to))) {
      throw invalid(`tensor ${name} holds values that are not finite`)
    }
    checked = to
  }

  return {
    write(piece) {
      let done = 0
      while (done < piece.length) {
        const placement = placements[current]
        if (placement === undefined) throw invalid('it is longer than its tensors')
        const { begin, end, target } = placement
        if (position === begin) checked = target / 4
        const count = Math.min(end - position, piece.length - done)
        data.set(piece.subarray(done, done + count), target + position - begin)
        position += count
        done += count
        check(placement, target + position - begin)
        if (position === end) current++
      }
    },
    end() {
      if (position < data.length) {
        throw invalid(`it ends after ${position} of ${data.length} bytes of data`)
      }
    },
  }
}

function placementsOf(tensors: ReadonlyMap<string, TensorHeader>, schema: Schema): Placement[] {
  const placements: Placement[] = []
  const surplus = new Set(tensors.keys())
  for (const entry of schema.entries) {
    const { name } = entry
    const tensor = tensors.get(name)
    if (tensor === undefined) throw invalid(`tensor ${name} is missing`)
    surplus.delete(name)
    checkTensor(tensor, entry)
    const [begin, end] = tensor.data_offsets
    placements.push({ name, begin, end, target: 4 * entry.offset })
  }
  const [foreign] = surplus
  if (foreign !== undefined) throw invalid(`tensor ${quoted(foreign)} is not part of the model`)
  placements.sort((a, b) => a.begin - b.begin)
  let covered = 0
  for (const { begin, end } of placements) {
    if (begin !== covered) throw invalid(`its tensors leave a gap or overlap at byte ${covered}`)
    covered = end
  }
  return placements
}

/** Foreign text for a one-line message. */
function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 64))
}

function parseHeader(header: string): Map<string, TensorHeader> {
  let json: unknown
  try {
    json = JSON.parse(header)
  } catch (cause) {
    throw invalid('its header is not JSON', cause)
  }
  if (!header.startsWith('{') || typeof json !== 'object' || json === null) {
    throw invalid('its header is not a JSON object')
  }
  const tensors = new Map<string, TensorHeader>()
  for (const [name, value] of Object.entries(json)) {
    const parsed = (name === METADATA ? metadataSchema : tensorSchema).safeParse(value)
    if (!parsed.success) throw invalid(`its header's entry ${quoted(name)} is malformed`)
    if (ESCAPED.test(name)) throw invalid(`${quoted(name)} is no name for a tensor`)
    if (name !== METADATA) tensors.set(name, tensorSchema.parse(value))
  }
  return tensors
}

function checkTensor(
  { dtype, shape, data_offsets: [begin, end] }: TensorHeader,
  entry: SchemaEntry,
): void {
  const { name } = entry
  if (dtype !== 'F32') throw invalid(`tensor ${name} is ${quoted(dtype)}, F32 is needed`)
  if (shape.length !== entry.shape.length || shape.some((extent, i) => extent !== entry.shape[i])) {
    throw invalid(
      `tensor ${name} has shape [${shape.join(', ')}], [${entry.shape.join(', ')}] is needed`,
    )
  }
  if (end - begin !== 4 * entry.size) {
    throw invalid(`tensor ${name} has ${end - begin} bytes, ${4 * entry.size} are needed`)
  }
}

function invalid(what: string, cause?: unknown): ShoalError {
  return new ShoalError(
    'tensors_invalid',
    `the safetensors data does not fit: ${what}`,
    cause === undefined ? {} : { cause },
  )
}
