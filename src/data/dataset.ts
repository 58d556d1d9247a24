/** Tokens for training and for validation, made from a run's text. */
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { readText, type Pace } from './text.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Tokens for training and for validation (a held-out tail of the text). */
export interface Dataset {
  /** Token ids; in a SharedArrayBuffer where the engine lives in another thread. */
  readonly train: Uint16Array
  readonly validation: Uint16Array
}

export interface DatasetOptions {
  tokenizer: Tokenizer
  /** Share of the text's tail held out for validation, at most a half. */
  validationFraction: number
  /** Tokens of one sequence. */
  context: number
}

/**
 * Tokenizes the bytes of a text. The same bytes give the same tokens and the same split on every peer.
 * Throws `data_unusable` when they are empty, not UTF-8 text, hold a character outside the vocabulary or are too few.
 */
export async function createDataset(
  data: Uint8Array,
  { tokenizer, validationFraction, context }: DatasetOptions,
  pace: Pace,
): Promise<Dataset> {
  // No text has more tokens than bytes; pages that stay untouched cost nothing.
  const tokens = new Uint16Array(allocate(2 * data.length))
  let count = 0
  for await (const piece of readText(data, pace)) {
    const encoded = tokenizer.encode(piece, count)
    tokens.set(encoded, count)
    count += encoded.length
  }
  const held = Math.floor(count * validationFraction)
  requireEnough(count, held, context)
  return {
    train: tokens.subarray(0, count - held),
    validation: tokens.subarray(count - held, count),
  }
}

/** Memory that threads can share; browsers hide it from pages that are not isolated. */
function allocate(bytes: number): ArrayBuffer | SharedArrayBuffer {
  return typeof SharedArrayBuffer === 'function'
    ? new SharedArrayBuffer(bytes)
    : new ArrayBuffer(bytes)
}

function requireEnough(tokens: number, held: number, context: number): void {
  if (tokens < LIMITS.dataTokensMin) {
    throw new ShoalError(
      'data_unusable',
      `the data has ${tokens} tokens, ${LIMITS.dataTokensMin} are the least: bring more text`,
    )
  }
  // The targets of a sequence are its tokens, one further. The share held out is half at most: the rest is enough then.
  const window = context + 1
  if (held < window) {
    throw new ShoalError(
      'data_unusable',
      `${held} tokens are held out for validation, one sequence takes ${window}: bring more text, raise validationFraction or lower model.context`,
    )
  }
}
