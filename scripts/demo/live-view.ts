/** What the demo shows while the swarm trains. */
import { bytes, decimal, duration, integer, table } from '../../node/cli/format.ts'
import { plot } from '../../node/cli/plot.ts'
import type { PeerFrame } from './swarm.ts'

const PLOT_SIZE = { width: 60, height: 6 }

/** Training losses by completed outer step and peer, as far as they were seen. */
export type LossHistory = Map<number, Map<string, number>>

/** Adds what a moment shows. Returns the peers that have completed an outer step since. */
export function recordLosses(history: LossHistory, frames: readonly PeerFrame[]): PeerFrame[] {
  return frames.filter(({ label, run: { outerStep, loss } }) => {
    if (loss === null || outerStep === 0) return false
    const losses = history.get(outerStep) ?? new Map<string, number>()
    history.set(outerStep, losses)
    const isNew = !losses.has(label)
    if (isNew) losses.set(label, loss)
    return isNew
  })
}

/** The mean over peers for every outer step. */
export function lossCurve(history: LossHistory): number[] {
  return [...history].sort(([a], [b]) => a - b).map(([, losses]) => mean([...losses.values()]))
}

/** The whole picture, redrawn on a terminal. */
export function liveLines(
  frames: readonly PeerFrame[],
  history: LossHistory,
  elapsedMs: number,
): string[] {
  const steps = frames[0]?.run.outerSteps ?? 0
  const curve = lossCurve(history)
  const distances = frames.flatMap(({ run }) => run.consensusDistance ?? [])
  return [
    `${frames.length} peers, ${steps} outer steps, ${duration(elapsedMs)}`,
    '',
    ...table(
      ['PEER', 'STATUS', 'STEP', 'INNER', 'LOSS', 'TOKENS/S', 'PARTNERS', 'SENT', 'RECEIVED'],
      frames.map((frame) => [
        `${frame.label} …${frame.peerId.slice(-4)}`,
        frame.run.status,
        `${frame.run.outerStep}/${steps}`,
        `${frame.run.innerStep}/${frame.run.innerSteps}`,
        decimal(frame.run.loss),
        integer(frame.run.tokensPerSecond),
        partnersOf(frame, frames),
        bytes(frame.bytesSent),
        bytes(frame.bytesReceived),
      ]),
      'no peers',
    ),
    '',
    `consensus distance ${distances.length === 0 ? '-' : mean(distances).toFixed(4)}`,
    ...(curve.length === 0 ? [] : ['training loss by outer step']),
    ...plot(curve, PLOT_SIZE),
  ]
}

/** One line for each outer step of each peer, where nothing can be redrawn. */
export function stepLine(frame: PeerFrame, frames: readonly PeerFrame[]): string {
  const { label, run } = frame
  const partners = partnersOf(frame, frames)
  return [
    `peer ${label}`,
    `outer step ${run.outerStep}/${run.outerSteps}`,
    `loss ${decimal(run.loss)}`,
    `${integer(run.tokensPerSecond)} tokens/s`,
    partners === '' ? 'solo' : `averaged with ${partners}`,
    `consensus distance ${decimal(run.consensusDistance)}`,
    `sent ${bytes(frame.bytesSent)}`,
    `received ${bytes(frame.bytesReceived)}`,
  ].join('  ')
}

/** The partners of a peer's last round by their labels. */
function partnersOf({ run }: PeerFrame, frames: readonly PeerFrame[]): string {
  const labels = (run.round?.partners ?? []).map(
    (partner) => frames.find(({ peerId }) => peerId === partner)?.label ?? '?',
  )
  return labels.sort().join(' ')
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
