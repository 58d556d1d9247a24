/** Shared state of a run as the layers above see it. */
import type { PeerRecord } from './record.ts'

export type BoardValue = string | number | boolean | null

export interface Member {
  peer: string
  record: PeerRecord
  /** Since the newest envelope of this peer was made, as far as this node can know. */
  ageMs: number
}

export interface SharedState {
  /** Own record: written to the own document, signed, and pushed to connected members. */
  publish(record: PeerRecord): Promise<void>
  /** Unexpired records, the own one included, ordered by peer id. */
  members(): Member[]
  /** Entries of the admins' board, merged. */
  board(): Record<string, BoardValue>
  /** Throws `forbidden` unless this peer is one of the manifest's admins. `undefined` deletes. */
  writeBoard(key: string, value: BoardValue | undefined): Promise<void>
  /** Peers proven to have signed two envelopes with one sequence number. */
  equivocators(): string[]
  onChange(listener: () => void): () => void
  /** Runs one anti-entropy exchange with `peer` now. */
  sync(peer: string, signal?: AbortSignal): Promise<void>
  close(): Promise<void>
}

/** One per node: opens the shared state of each run and answers peers for all of them. */
export interface StateService {
  open(run: string, options: { admins: readonly string[] }): Promise<SharedState>
  close(): Promise<void>
}
