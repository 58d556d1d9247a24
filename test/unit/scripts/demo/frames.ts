/** Moments of a swarm as the demo sees them, for its tests. */
import type { PeerFrame } from '../../../../scripts/demo/swarm.ts'
import type { RunView } from '../../../../src/run/view.ts'

const VIEW: RunView = {
  id: 'bafy-run',
  name: 'moby-dick',
  public: true,
  rule: 'gossip-diloco',
  parameters: 1000,
  outerSteps: 10,
  innerSteps: 20,
  status: 'training',
  outerStep: 0,
  innerStep: 0,
  tokens: 0,
  loss: null,
  lossStart: 4,
  validationLoss: 4,
  tokensPerSecond: 0,
  consensusDistance: null,
  waitShare: null,
  bytesSent: 0,
  bytesReceived: 0,
  round: null,
  rounds: { averaged: 0, solo: 0, stale: 0 },
  members: [],
  checkpoints: [],
  board: {},
  parametersHash: null,
  error: null,
}

const ROUND = {
  outerStep: 0,
  outcome: 'averaged',
  durationMs: 5,
  bytesSent: 10,
  bytesReceived: 10,
  reasons: [],
} as const

/** The peer with this number, whose last round was with the peers with those numbers. */
export function frame(number: number, run: Partial<RunView> = {}, partners?: number[]): PeerFrame {
  const round =
    partners === undefined
      ? null
      : { ...ROUND, reasons: [], partners: partners.map((partner) => `peer-id-${partner}`) }
  return {
    label: `${number}`,
    peerId: `peer-id-${number}`,
    run: { ...VIEW, round, ...run },
    bytesSent: 1000 * number,
    bytesReceived: 500 * number,
  }
}
