/** Small keyed records (keys are `/`-separated paths), transactional: a batch is applied whole or not at all. */
export interface RecordStore {
  get(key: string): Promise<Uint8Array | undefined>
  put(key: string, value: Uint8Array): Promise<void>
  delete(key: string): Promise<void>
  /** All records whose key begins with `prefix`, in key order. */
  list(prefix: string): Promise<[key: string, value: Uint8Array][]>
  batch(operations: readonly RecordOperation[]): Promise<void>
}

export type RecordOperation = { put: string; value: Uint8Array } | { delete: string }
