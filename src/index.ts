/**
 * Shoal as a library: what a program needs to be a peer of a training swarm.
 *
 * `createNetwork` opens the mesh, `createNode` takes part in runs through it. The same modules run in Node and in
 * browsers; sockets, files and the embedded engine are passed in. In Node they come from `shoal/transports`,
 * `shoal/data-folder` and `shoal/engine`; `shoal/client` speaks to a daemon instead of being one.
 */
export { systemClock, type Clock } from './clock.ts'
export { FAULTS, ShoalError, type FaultCode } from './errors.ts'
export { silentLogger, type Logger } from './log.ts'
export { createMetrics, type Metrics } from './metrics.ts'
export { createNetwork, type NetworkOptions } from './net/host.ts'
export {
  createIdentity,
  identityFromBytes,
  identityToBytes,
  type Identity,
} from './net/identity.ts'
export type { Link, Network, PeerRpc } from './net/network.ts'
export type { ServiceHandler, ServiceReply, Services } from './net/services.ts'
export type { OpenBlob, SharedBlob, SharedBlobs } from './net/shared-blobs.ts'
export { createNode, type NodeOptions, type NodeStatus, type ShoalNode } from './node.ts'
export { seededRandom, type Random } from './random.ts'
export type { Average, AverageInput, AveragingGroups } from './run/averaging-groups.ts'
export { runSpecSchema, type Manifest, type RunSpec, type RunSpecInput } from './run/manifest.ts'
export type {
  LocalProgress,
  LocalStep,
  OuterParameters,
  OuterStepResult,
  TrainingScript,
} from './run/outside-trainer.ts'
export type { LoggedEvent } from './run/event-log.ts'
export { historyOf, type HistoryStep, type RunHistory } from './run/history.ts'
export { formatRunLink, parseRunLink, type RunLink } from './run/run-id.ts'
export type { ModelFiles } from './run/starting-point.ts'
export type { Engine, Trainer, TrainerKind, TrainerSpec } from './run/trainer.ts'
export type { CheckpointView, RunEvent, RunListing, RunView } from './run/view.ts'
export type { BlobStore } from './store/blob-store.ts'
export { createMemoryBlobStore, createMemoryRecordStore } from './store/memory.ts'
export type { RecordStore } from './store/record-store.ts'
