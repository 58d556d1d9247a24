/**
 * Where the elements that a top-k keeps lie in a slice: `keep` of each chunk, all of a last chunk with fewer elements.
 *
 * Both forms have a length that follows from the number of elements, and one spelling per set of positions.
 */

export interface Positions {
  /** Length of the form for a slice of so many elements. */
  bytes(elements: number): number
  /** Writes ascending places in the slice into zeroed bytes. */
  write(places: Uint32Array, bytes: Uint8Array): void
  /** Reads hostile bytes into `places`, which has the right length. Returns whether `write` makes such bytes. */
  read(bytes: Uint8Array, elements: number, places: Uint32Array): boolean
}

/** Elements that are kept of a slice. */
export function keptElements(elements: number, chunk: number, keep: number): number {
  return Math.floor(elements / chunk) * keep + Math.min(keep, elements % chunk)
}

/** The shorter of the two forms; `chunk` is a power of two from 8 to 65536. */
export function createPositions(chunk: number, keep: number): Positions {
  return keep * Math.log2(chunk) <= chunk ? createIndices(chunk, keep) : createBitmap(chunk, keep)
}

/** log2(chunk) bits for each place in its chunk, the first in the low bits of the first byte. */
function createIndices(chunk: number, keep: number): Positions {
  const indexBits = Math.log2(chunk)
  return {
    bytes: (elements) => Math.ceil((keptElements(elements, chunk, keep) * indexBits) / 8),
    write(places, bytes) {
      let held = 0
      let heldBits = 0
      let at = 0
      for (let j = 0; j < places.length; j++) {
        held |= (places[j]! & (chunk - 1)) << heldBits
        heldBits += indexBits
        for (; heldBits >= 8; heldBits -= 8) {
          bytes[at++] = held & 255
          held >>>= 8
        }
      }
      if (heldBits > 0) bytes[at] = held
    },
    read(bytes, elements, places) {
      let isValid = true
      let held = 0
      let heldBits = 0
      let at = 0
      let from = 0
      let previous = -1
      for (let j = 0; j < places.length; j++) {
        if (j > 0 && j % keep === 0) {
          from += chunk
          previous = from - 1
        }
        for (; heldBits < indexBits; heldBits += 8) held |= bytes[at++]! << heldBits
        const place = from + (held & (chunk - 1))
        held >>>= indexBits
        heldBits -= indexBits
        // An index is below its chunk's length, as it has no more bits; only the slice's end remains.
        if (place <= previous || place >= elements) isValid = false
        previous = place
        places[j] = place
      }
      return isValid && held === 0
    },
  }
}

/** One bit per element, the first in the lowest bit of the first byte. */
function createBitmap(chunk: number, keep: number): Positions {
  return {
    bytes: (elements) => Math.ceil(elements / 8),
    write(places, bytes) {
      for (let j = 0; j < places.length; j++) bytes[places[j]! >> 3]! |= 1 << (places[j]! & 7)
    },
    read(bytes, elements, places) {
      let found = 0
      for (let at = 0; at < bytes.length; at++) {
        for (let byte = bytes[at]!; byte !== 0; byte &= byte - 1) {
          if (found === places.length) return false
          places[found++] = 8 * at + 31 - Math.clz32(byte & -byte)
        }
      }
      if (found !== places.length) return false
      for (let from = 0, first = 0; first < found; from += chunk, first += keep) {
        const last = Math.min(first + keep, found) - 1
        if (places[first]! < from || places[last]! >= Math.min(from + chunk, elements)) return false
      }
      return true
    },
  }
}
