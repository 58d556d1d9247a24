/** The text behind a run's data: bytes, checked and decoded piece by piece so that large texts block nobody. */
import type { Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'

/** How work on much data gives way to others. */
export interface Pace {
  clock: Clock
  signal?: AbortSignal | undefined
}

/** A piece is decoded and tokenized in less than 20 ms. */
const PIECE_BYTES = 1 << 20
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf]

/**
 * The text in pieces that end between characters. A leading byte order mark is dropped, all else is kept (CRLF too).
 * Throws `data_unusable` on empty data and on what is not UTF-8 text.
 */
export async function* readText(data: Uint8Array, { clock, signal }: Pace): AsyncGenerator<string> {
  const start = BYTE_ORDER_MARK.every((byte, i) => data[i] === byte) ? BYTE_ORDER_MARK.length : 0
  if (data.length === start) {
    throw new ShoalError('data_unusable', 'the data is empty: name a text file or a folder of them')
  }
  for (let from = start; from < data.length;) {
    const to = characterBoundary(data, from + PIECE_BYTES)
    yield decodePiece(data, from, to)
    from = to
    if (from < data.length) await clock.sleep(0, signal)
  }
}

/** The last boundary between characters at or before `end`; a character has up to three continuation bytes. */
function characterBoundary(data: Uint8Array, end: number): number {
  if (end >= data.length) return data.length
  let boundary = end
  while (boundary > end - 3 && (data[boundary]! & 0xc0) === 0x80) boundary--
  return boundary
}

function decodePiece(data: Uint8Array, from: number, to: number): string {
  const piece = data.subarray(from, to)
  const zero = piece.indexOf(0)
  if (zero !== -1) {
    throw new ShoalError(
      'data_unusable',
      `the data is binary (byte ${from + zero} is NUL): only plain text in UTF-8 will do`,
    )
  }
  try {
    return strictDecoder().decode(piece)
  } catch (cause) {
    throw new ShoalError(
      'data_unusable',
      `the data is not UTF-8 (byte ${from + firstInvalidByte(piece)}): convert it, for example with iconv`,
      { cause },
    )
  }
}

/** Where the first malformed character begins: the end of the longest prefix that is text. */
function firstInvalidByte(piece: Uint8Array): number {
  // By bisection: with `stream` a prefix fails exactly when it holds a byte that cannot be there.
  let valid = 0
  let invalid = piece.length
  while (invalid - valid > 1) {
    const middle = (valid + invalid) >> 1
    if (isText(piece.subarray(0, middle), { stream: true })) valid = middle
    else invalid = middle
  }
  while (!isText(piece.subarray(0, valid))) valid--
  return valid
}

function isText(bytes: Uint8Array, options?: TextDecodeOptions): boolean {
  try {
    strictDecoder().decode(bytes, options)
    return true
  } catch {
    return false
  }
}

function strictDecoder(): TextDecoder {
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
}
