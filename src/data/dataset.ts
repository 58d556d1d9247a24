/** Tokens for training and for validation (a held-out tail of the text). */
export interface Dataset {
  /** Token ids; in a SharedArrayBuffer where the engine lives in another thread. */
  readonly train: Uint16Array
  readonly validation: Uint16Array
}
