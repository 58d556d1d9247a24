/** The view of a run, made from its context. */
import { bytesReceived, bytesSent, type RunContext } from './run-context.ts'
import type { RunView } from './view.ts'

export function viewOf(run: RunContext): RunView {
  const { id, manifest, progress, state, self, elements } = run
  return {
    id,
    name: manifest.name,
    public: manifest.public,
    rule: manifest.averaging.rule,
    parameters: elements,
    outerSteps: manifest.outerSteps,
    innerSteps: manifest.innerSteps,
    status: progress.status,
    outerStep: progress.outerStep,
    innerStep: progress.innerStep,
    tokens: progress.tokens,
    loss: progress.loss,
    lossStart: progress.lossStart,
    validationLoss: progress.validationLoss,
    tokensPerSecond: progress.tokensPerSecond,
    consensusDistance: progress.consensusDistance,
    waitShare: progress.trainingMs === 0 ? null : progress.waitedMs / progress.trainingMs,
    bytesSent: bytesSent(run),
    bytesReceived: bytesReceived(run),
    round: progress.round,
    rounds: { ...progress.rounds },
    members: state.members().map(({ peer, record, ageMs }) => ({
      peer,
      self: peer === self,
      status: record.status,
      outerStep: record.outerStep,
      tokens: record.tokens,
      loss: record.loss,
      tokensPerSecond: record.tokensPerSecond,
      partners: record.partners,
      bytesSent: record.bytesSent,
      bytesReceived: record.bytesReceived,
      ageMs: Math.round(ageMs),
    })),
    checkpoints: progress.checkpoints.map((kept) => ({ ...kept, bytes: elements * 4 })),
    board: state.board(),
    parametersHash: progress.parametersHash,
    error: progress.error,
  }
}
