/**
 * Memory of received bytes, freed by hand where that is safe.
 *
 * The garbage collector sees little of the memory behind typed arrays and answers a fast transfer with one full
 * collection after the other: half of the CPU time of receiving. Whoever reads from a socket marks memory that nobody
 * else looks at; whoever has used all bytes in it frees it.
 */

/** Smaller pieces are not worth it. */
const LEAST_BYTES = 4096

const exclusive = new WeakSet<ArrayBufferLike>()

/** Says that only the reader to whom `bytes` are handed on will look at their memory. */
export function markExclusive(bytes: Uint8Array): void {
  if (bytes.length >= LEAST_BYTES && bytes.length === bytes.buffer.byteLength) {
    exclusive.add(bytes.buffer)
  }
}

/** Empties `bytes` when they are all of a memory that was marked; else does nothing. */
export function free(bytes: Uint8Array): void {
  const { buffer, length } = bytes
  if (length < LEAST_BYTES || length !== buffer.byteLength || !exclusive.delete(buffer)) return
  // Moves it into an array of no bytes.
  if (buffer instanceof ArrayBuffer) buffer.transfer(0)
}
