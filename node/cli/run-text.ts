/** A run's state as lines for people. */
import type { RunView } from '../../src/run/view.ts'
import { bytes, decimal, duration, integer, shortPeer, table } from './format.ts'

/** The whole picture: what `run show` prints and `--watch` redraws. */
export function runLines(run: RunView): string[] {
  return [
    `${run.name}  ${run.id}`,
    runLine(run),
    `rule ${run.rule}  parameters ${integer(run.parameters)}  inner steps ${run.innerStep}/${run.innerSteps}` +
      `  consensus distance ${decimal(run.consensusDistance)}`,
    `rounds ${run.rounds.averaged} averaged, ${run.rounds.solo} solo, ${run.rounds.stale} stale` +
      `  sent ${bytes(run.bytesSent)}  received ${bytes(run.bytesReceived)}  tokens ${integer(run.tokens)}` +
      waitText(run),
    ...roundLines(run),
    ...boardLines(run),
    ...(run.error === null ? [] : [`failed: ${run.error.message} (${run.error.code})`]),
    '',
    ...memberLines(run),
  ]
}

/** One line: for logs and for terminals that cannot redraw. */
export function runLine(run: RunView): string {
  return [
    run.status,
    `outer step ${run.outerStep}/${run.outerSteps}`,
    `loss ${decimal(run.loss)}`,
    `validation ${decimal(run.validationLoss)}`,
    `${integer(run.tokensPerSecond)} tokens/s`,
    `${run.members.length} ${run.members.length === 1 ? 'peer' : 'peers'}`,
  ].join('  ')
}

/** How much of its time this node's compute has waited for the network. */
function waitText({ waitShare }: RunView): string {
  return waitShare === null ? '' : `  waited ${(100 * waitShare).toFixed(1)} % of the time`
}

function roundLines({ round }: RunView): string[] {
  if (round === null) return []
  const partners = round.partners.map(shortPeer).join(' ')
  const who = partners === '' ? '' : ` with ${partners}`
  const why = round.reasons.length === 0 ? '' : ` (${round.reasons.join('; ')})`
  return [`last round ${round.outcome}${who} in ${duration(round.durationMs)}${why}`]
}

function boardLines({ board }: RunView): string[] {
  return Object.entries(board).map(([key, value]) => `board ${key} = ${String(value)}`)
}

function memberLines(run: RunView): string[] {
  return table(
    ['PEER', 'STATUS', 'STEP', 'LOSS', 'TOKENS/S', 'PARTNERS', 'SENT', 'RECEIVED'],
    run.members.map((member) => [
      member.self ? `${shortPeer(member.peer)} (this)` : shortPeer(member.peer),
      member.status,
      String(member.outerStep),
      decimal(member.loss),
      integer(member.tokensPerSecond),
      member.partners.map(shortPeer).join(' '),
      bytes(member.bytesSent),
      bytes(member.bytesReceived),
    ]),
    'no peers yet',
  )
}
