/** createNode(): the composition root of the library, readable top to bottom. */
import type { Link } from './net/network.ts'
import type { RunSpec } from './run/manifest.ts'
import type { CheckpointView, RunEvent, RunListing, RunView } from './run/view.ts'

export interface NodeStatus {
  peerId: string
  version: string
  addresses: string[]
  reachability: 'unknown' | 'public'
  links: number
  runs: number
  engine: string
  uptimeMs: number
  counters: Record<string, number>
}

/** A checkpoint as a Hugging Face style folder: file name to bytes, streamed in order. */
export interface CheckpointFile {
  name: string
  bytes: number
  content: AsyncIterable<Uint8Array>
}

export interface ShoalNode {
  readonly peerId: string
  status(): NodeStatus
  peers(): Link[]
  connect(address: string, signal?: AbortSignal): Promise<string>
  /** Builds initial weights, manifest and blobs, and starts to take part. `text` is the data named by the spec. */
  createRun(spec: RunSpec, text: Uint8Array): Promise<RunView>
  /**
   * Takes part in a run known by its id or `shoal:` link: finds members, fetches manifest, weights and data from them.
   * Resolves when the manifest is here; the rest goes on in the background and is seen in the view's status.
   * `text` is this peer's own data, compulsory when the manifest shares none.
   */
  joinRun(idOrLink: string, options?: { text?: Uint8Array; signal?: AbortSignal }): Promise<RunView>
  leaveRun(id: string): Promise<void>
  /** Own runs, or with `discover` also public ones found in the directory. */
  listRuns(options?: { discover?: boolean; signal?: AbortSignal }): Promise<RunListing[]>
  /** Throws `run_unknown` when this node does not take part in it. */
  run(id: string): RunView
  runs(): RunView[]
  /** `shoal:<run id>?peer=<multiaddr>…` */
  invite(id: string): string
  checkpoints(id: string): CheckpointView[]
  /** The newest checkpoint (or `cid`) as files of a Hugging Face style folder. */
  exportCheckpoint(id: string, cid?: string): Promise<CheckpointFile[]>
  writeBoard(
    id: string,
    key: string,
    value: string | number | boolean | null | undefined,
  ): Promise<void>
  onEvent(listener: (event: RunEvent) => void): () => void
  stop(): Promise<void>
}
