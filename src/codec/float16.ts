/** IEEE 754 half precision in plain arithmetic: `Float16Array` is not in Node 22 nor in every browser. */

/** Bits of a float32 whose exponent field makes it an integer multiple of 2^-24, the smallest half: those of 0.5. */
const HALF = 0x3f000000
const INFINITE = 0x7c00

/**
 * The nearest halves, ties to even, as 16 bits each. Values beyond the range, and those that are none, have the exponent
 * of infinity: see `isFiniteHalf`.
 */
export function toHalves(values: Float32Array): Uint16Array<ArrayBuffer> {
  const halves = new Uint16Array(values.length)
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!
    const sign = (word >>> 16) & 0x8000
    const magnitude = word & 0x7fffffff
    halves[i] = sign | (magnitude < 0x38800000 ? smallHalf(magnitude) : normalHalf(magnitude))
  }
  return halves
}

/** Of a float32 of at least 2^-14: the exponent gets another bias, and what rounds up carries into it. */
function normalHalf(magnitude: number): number {
  if (magnitude >= 0x47800000) return magnitude > 0x7f800000 ? 0x7e00 : INFINITE
  const even = (magnitude >>> 13) & 1
  return (magnitude + 0xfff + even - 0x38000000) >>> 13
}

const word = new Uint32Array(1)
const value = new Float32Array(word.buffer)

/** Of a float32 below 2^-14: added to 0.5 it is rounded to a multiple of 2^-24 by the hardware. */
function smallHalf(magnitude: number): number {
  word[0] = magnitude
  value[0] = value[0]! + 0.5
  return word[0] - HALF
}

export function isFiniteHalf(half: number): boolean {
  return (half & INFINITE) !== INFINITE
}

/** Writes the values of as many halves as there are into the begin of `target`. */
export function fromHalves(halves: Uint16Array, target: Float32Array): void {
  const table = (values ??= allValues())
  for (let i = 0; i < halves.length; i++) target[i] = table[halves[i]!]!
}

/** Of each of the 65 536 halves; 256 KB, made at the first use. */
let values: Float32Array | undefined

function allValues(): Float32Array {
  return Float32Array.from({ length: 1 << 16 }, (_, half) => {
    const sign = (half & 0x8000) === 0 ? 1 : -1
    const exponent = (half >>> 10) & 0x1f
    const fraction = half & 0x3ff
    if (exponent === 0) return sign * fraction * 2 ** -24
    if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : NaN
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
  })
}
