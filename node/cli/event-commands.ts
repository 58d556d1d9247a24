/** `shoal run events` and `shoal run replay`. */
import { open } from 'node:fs/promises'
import { resolve } from 'node:path'
import { ShoalError, messageOf } from '../../src/errors.ts'
import { historyOf } from '../../src/run/history.ts'
import { LIMITS } from '../../src/limits.ts'
import { ROUTES } from '../api/routes.ts'
import { readEventLog, readEventLogText } from '../event-log-file.ts'
import type { EventLogFile } from '../event-log-file.ts'
import { createCourse, eventLine } from './course.ts'
import { bytes, integer } from './format.ts'
import { resolveRun } from './session.ts'
import type { Command, Session } from './session.ts'

export const EVENT_COMMANDS: readonly Command[] = [
  {
    name: 'run events',
    arguments: '[run]',
    summary: 'print the event log of a run of this node, or write it to a file',
    examples: ['run events', 'run events bafyreib4 --export moby.events'],
    options: [{ flags: '--export <file>', summary: 'write it there, for `shoal run replay`' }],
    async run(session) {
      const run = await resolveRun(session, session.argument(0))
      const { cwd, signal } = session.terminal
      const { content = [] } = await session
        .daemon()
        .download(ROUTES.runEvents, { run }, { signal })
      const path = session.text('export')
      if (path === undefined) {
        print(session, await readEventLogText(content))
        return
      }
      const file = resolve(cwd, path)
      const written = await writeFile(file, content)
      session.emit({ run, file, bytes: written }, () => [
        `wrote ${bytes(written)} to ${file}; \`shoal run replay ${path}\` prints it`,
      ])
    },
  },
  {
    name: 'run replay',
    arguments: '<file>',
    summary: 'print the course of a run from its exported event log (needs no daemon)',
    examples: ['run replay moby.events', 'run replay moby.events --json'],
    async run(session) {
      const log = await readEventLog(resolve(session.terminal.cwd, session.argument(0) ?? ''))
      print(session, log)
      if (!session.json) session.emit({}, await summaryOf(log))
    },
  },
]

/** With `--json` one object per event. */
function print(session: Session, { header, events }: EventLogFile): void {
  if (!session.json) session.emit({}, () => [`${header.name}  ${header.run}`])
  for (const logged of events) session.emit(logged, () => [eventLine(logged)])
}

async function summaryOf({ header, events }: EventLogFile): Promise<() => string[]> {
  const history = await historyOf(events, LIMITS.historyPoints)
  const course = createCourse()
  course.add(history)
  const { steps } = history
  const last = steps.at(-1)
  const sum = (of: (step: (typeof steps)[number]) => number): number =>
    steps.reduce((total, step) => total + of(step), 0)
  return () => [
    ...course.lines(),
    '',
    `${last?.outerStep ?? 0} of ${header.outerSteps} outer steps  ${integer(last?.tokens ?? 0)} tokens` +
      `  rounds sent ${bytes(sum((step) => step.bytesSent))}` +
      `  received ${bytes(sum((step) => step.bytesReceived))}`,
  ]
}

async function writeFile(
  path: string,
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<number> {
  try {
    const handle = await open(path, 'w')
    let count = 0
    try {
      for await (const piece of content) {
        await handle.writeFile(piece)
        count += piece.length
      }
    } finally {
      await handle.close()
    }
    return count
  } catch (cause) {
    throw new ShoalError('storage_failed', `cannot write ${path}: ${messageOf(cause)}`, { cause })
  }
}
