/**
 * AdamW as WebAssembly SIMD: `adamwStep` four parameters at a time, with the same bits.
 *
 * The plain loop takes a sixth of a small model's inner step. Every operation is one correctly rounded float32
 * operation of IEEE 754 in both, so results are equal on every machine. The module is assembled here from its few
 * instructions; opcodes: https://webassembly.github.io/spec/core/binary/instructions.html
 */
import { ShoalError } from '../errors.ts'
import type { Schema } from '../tensor/schema.ts'
import { adamwCoefficients, decayRanges, type AdamWSettings } from './inner.ts'

/** What an inner step works on: vectors of one length in one memory. */
export interface TrainingVectors {
  readonly parameters: Float32Array
  readonly gradient: Float32Array
  readonly firstMoment: Float32Array
  readonly secondMoment: Float32Array
}

/** Pages of 64 KiB that a memory can have at most: 4 GiB. */
const MAX_PAGES = 65_536
const PAGE_BYTES = 65_536

/**
 * A zeroed memory with room for the training vectors of a model of `size` parameters. Throws `spec_invalid`
 * above the 4 GiB that WebAssembly addresses.
 */
export function createTrainingMemory(size: number): WebAssembly.Memory {
  const pages = Math.ceil((4 * vectorBytes(size)) / PAGE_BYTES)
  if (pages > MAX_PAGES) {
    throw new ShoalError(
      'spec_invalid',
      `training ${size} parameters takes more than the engine's 4 GiB; choose a smaller model`,
    )
  }
  return new WebAssembly.Memory({ initial: pages, maximum: pages })
}

/** The vectors in a memory that `createTrainingMemory` made for the same size. */
export function trainingVectors(memory: WebAssembly.Memory, size: number): TrainingVectors {
  const at = (index: number): Float32Array =>
    new Float32Array(memory.buffer, index * vectorBytes(size), size)
  return { parameters: at(0), gradient: at(1), firstMoment: at(2), secondMoment: at(3) }
}

/** Vectors start at multiples of a cache line. */
const vectorBytes = (size: number): number => Math.ceil((size * 4) / 64) * 64

/** As `adamwStep`, on the vectors of one memory. */
export type SimdAdamW = (settings: AdamWSettings, gradientFactor?: number) => void

/** Compiles the kernel for the training vectors in `memory`; `state` is advanced with every step. */
export function createSimdAdamW(
  memory: WebAssembly.Memory,
  schema: Schema,
  state: { step: number },
): SimdAdamW {
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(assembleModule()), {
    shoal: { memory },
  })
  const run = exports['update']
  if (typeof run !== 'function')
    throw new ShoalError('internal', 'the AdamW kernel lost its export')
  const { parameters, gradient, firstMoment, secondMoment } = trainingVectors(memory, schema.size)
  const starts = [parameters, gradient, firstMoment, secondMoment].map((v) => v.byteOffset)
  const ranges = decayRanges(schema)
  return (settings, gradientFactor = 1) => {
    state.step += 1
    const { retained, ...coefficients } = adamwCoefficients(settings, state.step)
    const { beta1, beta2, complement1, complement2 } = coefficients
    const { epsilon, stepSize, correction2 } = coefficients
    for (const { from, to, decay } of ranges) {
      const addresses = starts.map((start) => start + from * 4)
      const factors = [gradientFactor, decay ? retained : 1, beta1, beta2, complement1, complement2]
      run(...addresses, to - from, ...factors, epsilon, stepSize, correction2)
    }
  }
}

type Code = readonly number[]

/** The instructions of one width: a vector of four or a single float32. */
interface Lanes {
  bytes: number
  load: Code
  store: Code
  add: Code
  sub: Code
  mul: Code
  div: Code
  sqrt: Code
}

const VECTOR: Lanes = {
  bytes: 16,
  load: [0xfd, 0x00, 0, 0],
  store: [0xfd, 0x0b, 0, 0],
  add: [0xfd, 0xe4, 0x01],
  sub: [0xfd, 0xe5, 0x01],
  mul: [0xfd, 0xe6, 0x01],
  div: [0xfd, 0xe7, 0x01],
  sqrt: [0xfd, 0xe3, 0x01],
}

const SCALAR: Lanes = {
  bytes: 4,
  load: [0x2a, 0, 0],
  store: [0x38, 0, 0],
  add: [0x92],
  sub: [0x93],
  mul: [0x94],
  div: [0x95],
  sqrt: [0x91],
}

const SPLAT: Code = [0xfd, 0x13]
const TYPE = { i32: 0x7f, f32: 0x7d, v128: 0x7b }

/** Addresses and count, then the nine float32 coefficients, as `update` takes them. */
const POINTERS = ['parameters', 'gradient', 'firstMoment', 'secondMoment'] as const
const COEFFICIENTS = [
  'gradientFactor',
  'retained',
  'beta1',
  'beta2',
  'complement1',
  'complement2',
  'epsilon',
  'stepSize',
  'correction2',
] as const
type Coefficient = (typeof COEFFICIENTS)[number]

const COUNT = POINTERS.length
const FIRST_COEFFICIENT = COUNT + 1
/** Locals behind the parameters: the end of a loop, the values of one width, the splatted coefficients. */
const END = FIRST_COEFFICIENT + COEFFICIENTS.length
const SCALARS = END + 1
const VECTORS = SCALARS + 4
const SPLATTED = VECTORS + 4

/** Instructions one after the other. */
const code = (...parts: readonly Code[]): Code => parts.flat()
const get = (local: number): Code => code([0x20], leb128(local))
const set = (local: number): Code => code([0x21], leb128(local))
const integer = (value: number): Code => code([0x41], leb128(value))
const pointer = (name: (typeof POINTERS)[number]): Code => get(POINTERS.indexOf(name))

function assembleModule(): Uint8Array<ArrayBuffer> {
  const pointers = Array.from({ length: FIRST_COEFFICIENT }, () => TYPE.i32)
  const signature = code(
    pointers,
    COEFFICIENTS.map(() => TYPE.f32),
  )
  const locals = list([
    [1, TYPE.i32],
    [4, TYPE.f32],
    [4, TYPE.v128],
    [COEFFICIENTS.length, TYPE.v128],
  ])
  // A memory of 0 to 65 536 pages (flag 1: with a maximum).
  const memory = code(text('shoal'), text('memory'), [2, 1, 0], leb128(MAX_PAGES))
  return Uint8Array.from(
    code(
      [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
      section(1, list([code([0x60], bytes(signature), [0])])),
      section(2, list([memory])),
      section(3, list([[0]])),
      section(7, list([code(text('update'), [0, 0])])),
      section(10, list([bytes(code(locals, functionBody(), [0x0b]))])),
    ),
  )
}

function functionBody(): Code {
  const splats = COEFFICIENTS.map((_, index) =>
    code(get(FIRST_COEFFICIENT + index), SPLAT, set(SPLATTED + index)),
  )
  // As many whole vectors as the count holds, then the rest one by one.
  const whole = code(get(COUNT), integer(2), [0x76], integer(4), [0x74])
  const rest = code(get(COUNT), integer(3), [0x71], integer(2), [0x74])
  return code(
    ...splats,
    loop(whole, VECTOR, VECTORS, SPLATTED),
    loop(rest, SCALAR, SCALARS, FIRST_COEFFICIENT),
  )
}

/** Updates `length` bytes from the pointers on, and moves the pointers behind them. */
function loop(length: Code, lanes: Lanes, firstValue: number, firstCoefficient: number): Code {
  const coefficient = (name: Coefficient): Code =>
    get(firstCoefficient + COEFFICIENTS.indexOf(name))
  const advance = POINTERS.map((name, local) =>
    code(pointer(name), integer(lanes.bytes), [0x6a], set(local)),
  )
  return code(
    code(pointer('parameters'), length, [0x6a], set(END)),
    // block, loop: leave the block when the parameters' pointer has reached the end.
    [0x02, 0x40, 0x03, 0x40],
    code(pointer('parameters'), get(END), [0x4f, 0x0d, 1]),
    updateOf(lanes, firstValue, coefficient),
    ...advance,
    [0x0c, 0, 0x0b, 0x0b],
  )
}

/** The formula of `adamwStep`, in its order. */
function updateOf(lanes: Lanes, first: number, coefficient: (name: Coefficient) => Code): Code {
  const [g, m, v, step] = [first, first + 1, first + 2, first + 3] as const
  const { load, store } = lanes
  const add = (a: Code, b: Code): Code => code(a, b, lanes.add)
  const subtract = (a: Code, b: Code): Code => code(a, b, lanes.sub)
  const multiply = (a: Code, b: Code): Code => code(a, b, lanes.mul)
  const divide = (a: Code, b: Code): Code => code(a, b, lanes.div)
  const root = (a: Code): Code => code(a, lanes.sqrt)
  const at = (name: (typeof POINTERS)[number]): Code => code(pointer(name), load)
  const moment = (old: Code, beta: Coefficient, fresh: Code, complement: Coefficient): Code =>
    add(multiply(old, coefficient(beta)), multiply(fresh, coefficient(complement)))

  const deviation = divide(root(get(v)), coefficient('correction2'))
  const denominator = add(deviation, coefficient('epsilon'))
  return code(
    code(multiply(at('gradient'), coefficient('gradientFactor')), set(g)),
    code(moment(at('firstMoment'), 'beta1', get(g), 'complement1'), set(m)),
    code(moment(at('secondMoment'), 'beta2', multiply(get(g), get(g)), 'complement2'), set(v)),
    code(pointer('firstMoment'), get(m), store),
    code(pointer('secondMoment'), get(v), store),
    code(multiply(coefficient('stepSize'), divide(get(m), denominator)), set(step)),
    pointer('parameters'),
    subtract(multiply(at('parameters'), coefficient('retained')), get(step)),
    store,
  )
}

/** Base-128 digits, low first; bit 6 of the last stays clear, so that signed readers see a positive number. */
function leb128(value: number): number[] {
  const digits: number[] = []
  let rest = value
  while (rest > 63) {
    digits.push((rest & 127) | 128)
    rest >>>= 7
  }
  digits.push(rest)
  return digits
}

const bytes = (content: Code): Code => code(leb128(content.length), content)
const list = (items: readonly Code[]): Code => code(leb128(items.length), ...items)
const text = (value: string): Code => bytes([...new TextEncoder().encode(value)])
const section = (id: number, content: Code): Code => code([id], bytes(content))
