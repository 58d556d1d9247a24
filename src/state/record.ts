/** A peer's record in the shared state of a run: flat values, one writer, expiring. */
import { z } from 'zod'

export const PEER_STATUSES = [
  'joining',
  'waiting',
  'training',
  'silent', // its outside trainer is not heard
  'merging',
  'finished',
  'leaving',
] as const

export const peerRecordSchema = z.strictObject({
  status: z.enum(PEER_STATUSES),
  /** Completed outer steps: parameters published under this number. */
  outerStep: z.number().int().min(0),
  /** Tokens this peer has trained on in this run. */
  tokens: z.number().int().min(0),
  /** Mean training loss of the last inner steps, nats per token. */
  loss: z.number().nullable(),
  validationLoss: z.number().nullable(),
  tokensPerSecond: z.number().min(0),
  /** Newest checkpoint this peer holds. */
  checkpoint: z.string().max(128).nullable(),
  checkpointStep: z.number().int().min(0).nullable(),
  /** sha-256 of the outer parameters after `outerStep` (all-reduce mode: equal on all peers). */
  parametersHash: z.string().max(64).nullable(),
  /** Estimate of the swarm's rms distance to its mean, as a share of the norm of the parameters. */
  consensusDistance: z.number().min(0).nullable(),
  /** Partners of the last round, by peer id. */
  partners: z.array(z.string().max(128)).max(32),
  /** `averaged`, `solo` or `stale`. */
  outcome: z.enum(['averaged', 'solo', 'stale']).nullable(),
  bytesSent: z.number().int().min(0),
  bytesReceived: z.number().int().min(0),
})
export type PeerRecord = z.infer<typeof peerRecordSchema>

/** The record of a peer that has trained nothing and holds nothing. */
export function blankRecord(status: PeerRecord['status'], outerStep = 0): PeerRecord {
  return {
    status,
    outerStep,
    tokens: 0,
    loss: null,
    validationLoss: null,
    tokensPerSecond: 0,
    checkpoint: null,
    checkpointStep: null,
    parametersHash: null,
    consensusDistance: null,
    partners: [],
    outcome: null,
    bytesSent: 0,
    bytesReceived: 0,
  }
}
