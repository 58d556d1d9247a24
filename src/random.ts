/** Randomness as an argument: seeded streams, so that a swarm replays exactly. Not for secrets. */
import { sha256 } from '@noble/hashes/sha2.js'
import { bytesToHex, utf8ToBytes } from '@noble/hashes/utils.js'

/** A stream of random numbers. */
export interface Random {
  /** Uniform in [0, 1) with 32 bits. */
  uniform(): number
  /** Uniform integer in [0, bound). */
  integer(bound: number): number
  /** Standard normal (Box and Muller). */
  normal(): number
}

/** sha-256 of the parts, length-prefixed so that no two lists collide, as hex. */
export function hashOf(...parts: (string | number)[]): string {
  const text = parts.map((part) => `${String(part).length}:${part}`).join('')
  return bytesToHex(sha256(utf8ToBytes(text)))
}

/** The generator mulberry32: uniform in [0, 1) with 32 bits, from a seed of 32 bits. */
export function mulberry32(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** A stream named by its parts: same parts, same numbers, on every machine. mulberry32 on a sha-256 seed. */
export function seededRandom(...parts: (string | number)[]): Random {
  const uniform = mulberry32(Number.parseInt(hashOf(...parts).slice(0, 8), 16))
  let spare: number | undefined
  return {
    uniform,
    integer: (bound) => Math.floor(uniform() * bound),
    normal: () => {
      if (spare !== undefined) {
        const value = spare
        spare = undefined
        return value
      }
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()))
      const angle = 2 * Math.PI * uniform()
      spare = radius * Math.sin(angle)
      return radius * Math.cos(angle)
    },
  }
}
