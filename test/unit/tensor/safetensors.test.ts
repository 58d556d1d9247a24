import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { LIMITS } from '../../../src/limits.ts'
import {
  readSafetensors,
  readTensors,
  safetensorsHeader,
  writeSafetensors,
} from '../../../src/tensor/safetensors.ts'
import { createSchema, type Schema } from '../../../src/tensor/schema.ts'
import { floats } from '../oracle.ts'

const schema = createSchema([
  { name: 'embedding', shape: [3, 4], decay: true },
  { name: 'gain', shape: [4], decay: false },
  { name: 'head', shape: [2, 1, 2], decay: true },
])
const parameters = Float32Array.from({ length: schema.size }, (_, i) => Math.sin(i))

async function bytesOf(content: AsyncIterable<Uint8Array>): Promise<Uint8Array<ArrayBuffer>> {
  const pieces: Uint8Array[] = []
  for await (const piece of content) pieces.push(piece)
  return new Uint8Array(Buffer.concat(pieces))
}

async function fileOf(vector: Float32Array = parameters, of: Schema = schema) {
  return bytesOf(writeSafetensors(of, vector).content)
}

/** A file with any header, honest length included. */
function fileWith(header: unknown, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(
    typeof header === 'string' ? header : JSON.stringify(header),
  )
  const file = new Uint8Array(8 + json.length + data.length)
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true)
  file.set(json, 8)
  file.set(data, 8 + json.length)
  return file
}

const headerShape = z.record(z.string(), z.record(z.string(), z.unknown()))

function headerOf(file: Uint8Array): z.infer<typeof headerShape> {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true))
  return headerShape.parse(JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))))
}

function cut(file: Uint8Array, places: readonly number[]): Uint8Array[] {
  const ends = [...places.map((place) => place % (file.length + 1)), file.length].sort(
    (a, b) => a - b,
  )
  return ends.map((end, i) => file.subarray(i === 0 ? 0 : ends[i - 1], end))
}

async function expectInvalid(file: Iterable<Uint8Array>, why: RegExp): Promise<void> {
  const reading = readSafetensors(file, schema)
  await expect(reading).rejects.toMatchObject({ code: 'tensors_invalid' })
  await expect(reading).rejects.toThrow(why)
  await expect(reading).rejects.not.toThrow(/\n/)
}

describe('writeSafetensors', () => {
  test('writes the format: length, JSON header, metadata, row-major little-endian data', async () => {
    const { bytes, content } = writeSafetensors(schema, parameters, { format: 'pt' })
    const file = await bytesOf(content)
    expect(file.length).toBe(bytes)
    expect(headerOf(file)).toEqual({
      __metadata__: { format: 'pt' },
      embedding: { dtype: 'F32', shape: [3, 4], data_offsets: [0, 48] },
      gain: { dtype: 'F32', shape: [4], data_offsets: [48, 64] },
      head: { dtype: 'F32', shape: [2, 1, 2], data_offsets: [64, 80] },
    })
    const header = safetensorsHeader(schema, { format: 'pt' })
    expect(header.length % 8).toBe(0)
    expect(file.subarray(0, header.length)).toEqual(header)
    expect(new Float32Array(file.buffer, header.length)).toEqual(parameters)
  })

  test('streams a large vector in slices of a blob, twice if asked', async () => {
    const large = createSchema([
      { name: 'a', shape: [LIMITS.sliceElements + 5], decay: true },
      { name: 'b', shape: [LIMITS.sliceElements], decay: true },
    ])
    const vector = Float32Array.from({ length: large.size }, (_, i) => i)
    const { bytes, content } = writeSafetensors(large, vector)
    const lengths: number[] = []
    for await (const piece of content) lengths.push(piece.length)
    expect(lengths.slice(1)).toEqual([LIMITS.blobBytes, LIMITS.blobBytes, 20])
    expect(lengths.reduce((sum, length) => sum + length)).toBe(bytes)
    expect(await readSafetensors(content, large)).toEqual(vector)
  })

  test('names like __proto__ survive', async () => {
    const odd = createSchema([
      { name: '__proto__', shape: [1], decay: true },
      { name: 'constructor', shape: [1], decay: true },
    ])
    const file = await fileOf(floats([1, 2]), odd)
    expect(await readSafetensors([file], odd)).toEqual(floats([1, 2]))
  })

  test('refuses a vector of another length', () => {
    expect(() => writeSafetensors(schema, new Float32Array(3))).toThrow(/no 20 parameters/)
  })
})

describe('readSafetensors', () => {
  test('reads what was written, cut anywhere', async () => {
    const file = await fileOf()
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(2000)), async (places) => {
        expect(await readSafetensors(cut(file, places), schema)).toEqual(parameters)
      }),
    )
    const single = Array.from(file, (byte) => new Uint8Array([byte]))
    expect(await readSafetensors(single, schema)).toEqual(parameters)
  })

  test('round trip of any schema and finite values', async () => {
    const shape = fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 3 })
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.tuple(fc.string(), shape), {
          selector: ([name]) => name,
          minLength: 1,
          maxLength: 6,
        }),
        fc.infiniteStream(fc.float({ noNaN: true, noDefaultInfinity: true })),
        async (tensors, stream) => {
          fc.pre(tensors.every(([name]) => name !== '__metadata__' && !/["\\]/.test(name)))
          const any = createSchema(
            tensors.map(([name, extents]) => ({ name, shape: extents, decay: true })),
          )
          const vector = Float32Array.from({ length: any.size }, () => stream.next().value ?? 0)
          const file = await fileOf(vector, any)
          expect(await readSafetensors([file], any)).toEqual(vector)
        },
      ),
    )
  })

  test('refuses names with quotes and backslashes, which V8 may mistake for one another', async () => {
    for (const name of ['"', '\\', 'a"b', 'a\\b']) {
      const odd = createSchema(['', name].map((each) => ({ name: each, shape: [1], decay: true })))
      const file = await fileOf(floats([1, 2]), odd)
      await expect(readSafetensors([file], odd)).rejects.toThrow(/is no name for a tensor/)
    }
  })

  test('takes tensors in any order, and any metadata', async () => {
    const data = new Uint8Array(parameters.buffer)
    const reordered = new Uint8Array([
      ...data.subarray(64, 80),
      ...data.subarray(0, 48),
      ...data.subarray(48, 64),
    ])
    const file = fileWith(
      {
        gain: { dtype: 'F32', shape: [4], data_offsets: [64, 80] },
        __metadata__: { note: 'any' },
        head: { dtype: 'F32', shape: [2, 1, 2], data_offsets: [0, 16] },
        embedding: { dtype: 'F32', shape: [3, 4], data_offsets: [16, 64] },
      },
      reordered,
    )
    expect(await readSafetensors([file], schema)).toEqual(parameters)
  })

  test('fills the vector it is given', async () => {
    const shared = new Float32Array(new SharedArrayBuffer(4 * schema.size))
    expect(await readSafetensors([await fileOf()], schema, shared)).toBe(shared)
    expect([...shared]).toEqual([...parameters])
    const short = readSafetensors([], schema, new Float32Array(3))
    await expect(short).rejects.toMatchObject({ code: 'internal' })
  })

  test('names the tensor that does not fit', async () => {
    const file = await fileOf()
    const data = new Uint8Array(parameters.buffer)
    const changed = (name: string, entry: Record<string, unknown> | undefined) => {
      const header = headerOf(file)
      if (entry === undefined) delete header[name]
      else header[name] = { ...header[name], ...entry }
      return [fileWith(header, data)]
    }
    await expectInvalid(changed('gain', undefined), /tensor gain is missing/)
    await expectInvalid(changed('gain', { dtype: 'BF16' }), /tensor gain is "BF16", F32 is needed/)
    await expectInvalid(changed('head', { shape: [4] }), /shape \[4\], \[2, 1, 2\] is needed/)
    await expectInvalid(changed('head', { shape: [2, 2, 1] }), /tensor head has shape/)
    await expectInvalid(changed('gain', { data_offsets: [48, 60] }), /gain has 12 bytes, 16 are/)
    await expectInvalid(changed('gain', { data_offsets: [64, 80] }), /gap or overlap at byte 48/)
    await expectInvalid(changed('gain', { data_offsets: [80, 96] }), /gap or overlap at byte 48/)
    const overlapping = headerOf(file)
    overlapping['gain']!['data_offsets'] = [32, 48]
    overlapping['head']!['data_offsets'] = [48, 64]
    await expectInvalid([fileWith(overlapping, data)], /gap or overlap at byte 48/)
    await expectInvalid(changed('gain', { extra: 1 }), /entry "gain" is malformed/)
    await expectInvalid(changed('gain', { data_offsets: [-1, 15] }), /entry "gain" is malformed/)
    await expectInvalid(
      changed('new\nline', { dtype: 'F32', shape: [1], data_offsets: [80, 84] }),
      /tensor "new\\nline" is not part of the model/,
    )
    await expectInvalid(changed('__metadata__', { count: 3 }), /"__metadata__" is malformed/)
  })

  test('refuses data that are short, long or not finite', async () => {
    const file = await fileOf()
    await expectInvalid([file.subarray(0, -1)], /ends after 79 of 80 bytes/)
    await expectInvalid([file, new Uint8Array(1)], /longer than its tensors/)
    const infinite = parameters.slice()
    infinite[13] = Infinity
    await expectInvalid([await fileOf(infinite)], /tensor gain holds values that are not finite/)
  })

  test('refuses headers that are none', async () => {
    const data = new Uint8Array(80)
    await expectInvalid([], /ends within its header/)
    await expectInvalid([new Uint8Array(7)], /ends within its header/)
    await expectInvalid([new Uint8Array(100)], /not JSON/)
    await expectInvalid([fileWith('[]', data)], /not a JSON object/)
    await expectInvalid([fileWith(' {}', data)], /not a JSON object/)
    await expectInvalid([fileWith('{}', data)], /tensor embedding is missing/)
    await expectInvalid([fileWith('{"a":', data)], /not JSON/)
    const latin = fileWith('{}', data)
    latin[9] = 0xff
    await expectInvalid([latin], /not UTF-8/)
    for (const length of [BigInt(LIMITS.safetensorsHeaderBytes) + 1n, 2n ** 64n - 1n]) {
      const huge = new Uint8Array(16)
      new DataView(huge.buffer).setBigUint64(0, length, true)
      await expectInvalid([huge], /its header claims to be \d+ bytes long/)
    }
  })

  test('whatever bytes come, they give the parameters or a tensors_invalid fault', async () => {
    const file = await fileOf()
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(file.length - 1), fc.integer({ min: 0, max: 255 })), {
          minLength: 1,
          maxLength: 8,
        }),
        fc.nat(file.length),
        fc.boolean(),
        async (mutations, length, truncate) => {
          const mutated = file.slice(0, truncate ? length : file.length)
          for (const [place, byte] of mutations) if (place < mutated.length) mutated[place] = byte
          try {
            const read = await readSafetensors([mutated], schema)
            expect(mutated.length).toBe(file.length)
            expect(read.every(Number.isFinite)).toBe(true)
          } catch (thrown) {
            expect(thrown).toMatchObject({ code: 'tensors_invalid' })
          }
        },
      ),
      { numRuns: 1000 },
    )
  })

  test('whatever JSON comes as a header, it is refused without harm', async () => {
    await fc.assert(
      fc.asyncProperty(fc.json(), async (json) => {
        await expectInvalid([fileWith(json, new Uint8Array(80))], /./)
      }),
    )
  })
})

describe('readTensors', () => {
  test('takes the schema from the file, in the order of its data', async () => {
    const data = new Uint8Array(parameters.buffer)
    const file = fileWith(
      {
        gain: { dtype: 'F32', shape: [4], data_offsets: [48, 64] },
        head: { dtype: 'F32', shape: [2, 1, 2], data_offsets: [64, 80] },
        embedding: { dtype: 'F32', shape: [3, 4], data_offsets: [0, 48] },
      },
      data,
    )
    const read = await readTensors(cut(file, [3, 8, 50, 201, 230]))
    expect(read.schema).toEqual(schema)
    expect(read.parameters).toEqual(parameters)
  })

  test('a scalar is a tensor of one element', async () => {
    const file = fileWith(
      { temperature: { dtype: 'F32', shape: [], data_offsets: [0, 4] } },
      new Uint8Array(floats([7]).buffer),
    )
    const read = await readTensors([file])
    expect(read.schema.entries).toEqual([
      { name: 'temperature', shape: [], offset: 0, size: 1, decay: false },
    ])
    expect(read.parameters).toEqual(floats([7]))
  })

  test('refuses what is no set of float32 tensors, and more than there is room for', async () => {
    const entry = { dtype: 'F32', shape: [2], data_offsets: [0, 8] }
    const refused = async (header: unknown, data: Uint8Array, code: string): Promise<void> => {
      await expect(readTensors([fileWith(header, data)])).rejects.toMatchObject({ code })
    }
    await refused({ a: { ...entry, dtype: 'F16' } }, new Uint8Array(8), 'tensors_invalid')
    await refused({ a: entry, b: entry }, new Uint8Array(8), 'tensors_invalid')
    await refused({ 'a\nb': entry }, new Uint8Array(8), 'tensors_invalid')
    await refused({ a: entry }, new Uint8Array(7), 'tensors_invalid')
    await refused({ a: entry }, new Uint8Array(9), 'tensors_invalid')
    await refused({ a: { ...entry, shape: [0] } }, new Uint8Array(0), 'spec_invalid')
    await refused({}, new Uint8Array(0), 'spec_invalid')
    const many = LIMITS.parameters + 1
    const huge = { dtype: 'F32', shape: [many], data_offsets: [0, 4 * many] }
    await refused({ a: huge }, new Uint8Array(0), 'spec_invalid')
    await expect(readTensors([])).rejects.toMatchObject({ code: 'tensors_invalid' })
  })
})
