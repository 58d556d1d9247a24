/** `shoal run …` and `shoal invite`. */
import { resolve } from 'node:path'
import { systemClock } from '../../src/clock.ts'
import { ShoalError, isFaultCode } from '../../src/errors.ts'
import { TRAINER_KINDS, type TrainerKind } from '../../src/run/trainer.ts'
import type { RunView } from '../../src/run/view.ts'
import { ROUTES } from '../api/routes.ts'
import { createStatusBlock } from '../progress.ts'
import { createCourse, type Course } from './course.ts'
import { integer, table } from './format.ts'
import { runLine, runLines } from './run-text.ts'
import { resolveRun } from './session.ts'
import type { Command, Session } from './session.ts'
import { readSpec } from './spec.ts'

/** Members' progress comes without events of this node, so watching asks instead of listening. */
const WATCH_INTERVAL_MS = 500

const watchOption = { flags: '--watch', summary: 'follow until it ends; Ctrl-C stops watching' }
const trainerOption = {
  flags: '--trainer <kind>',
  summary: 'embedded (default) or outside: a script does the inner steps',
}
const dataOption = { flags: '--data <path>', summary: 'text file or folder to train on' }

export const RUN_COMMANDS: readonly Command[] = [
  {
    name: 'run create',
    arguments: '<spec>',
    summary: 'create a run from a spec (TOML or JSON) and take part in it',
    examples: ['run create moby.toml', 'run create moby.toml --data moby.txt --watch'],
    options: [dataOption, trainerOption, watchOption],
    async run(session) {
      const { cwd, signal } = session.terminal
      const data = session.text('data')
      const spec = await readSpec(session.argument(0) ?? '', { cwd, data })
      const input = { spec, trainer: trainerOf(session) }
      const view = await session.daemon().call(ROUTES.createRun, input, { signal })
      await report(session, view, [
        `created run ${view.name}: ${integer(view.parameters)} parameters, ${view.outerSteps} outer steps`,
        view.id,
        '`shoal invite` prints the link for others',
      ])
    },
  },
  {
    name: 'run list',
    summary: 'list own runs, and public ones found through the DHT',
    examples: ['run list', 'run list --local --json'],
    options: [
      { flags: '--discover', summary: 'look for public runs too (the default)' },
      { flags: '--local', summary: 'own runs only: asks nobody' },
    ],
    async run(session) {
      const { signal } = session.terminal
      const discover = session.options['local'] !== true
      if (discover) session.note('looking for public runs…')
      const listed = await session.daemon().call(ROUTES.runs, { discover }, { signal })
      session.emit(listed, () =>
        table(
          ['NAME', 'STATUS', 'STEP', 'PEERS', 'PARAMETERS', 'ID'],
          listed.runs.map((run) => [
            run.name,
            run.status ?? 'not joined',
            `${run.outerStep}/${run.outerSteps}`,
            String(run.peers),
            integer(run.parameters),
            run.id,
          ]),
          'no runs: create one with `shoal run create SPEC`, or join one with `shoal run join LINK`',
        ),
      )
    },
  },
  {
    name: 'run join',
    arguments: '<id-or-link>',
    summary: 'take part in a run, by its id or shoal: link',
    examples: ['run join shoal:bafyrei…?peer=/ip4/…', 'run join bafyrei… --data my-text/ --watch'],
    options: [dataOption, trainerOption, watchOption],
    async run(session) {
      const { cwd, signal } = session.terminal
      const data = session.text('data')
      const input = {
        run: session.argument(0) ?? '',
        trainer: trainerOf(session),
        ...(data !== undefined && { data: resolve(cwd, data) }),
      }
      session.note('looking for peers that have the run…')
      const view = await session.daemon().call(ROUTES.joinRun, input, { signal })
      await report(session, view, [`joined run ${view.name}`, view.id])
    },
  },
  {
    name: 'run show',
    arguments: '[run]',
    summary: 'show the state of a run of this node',
    examples: ['run show', 'run show bafyreib4 --watch'],
    options: [watchOption],
    async run(session) {
      const id = await resolveRun(session, session.argument(0))
      const { signal } = session.terminal
      const view = await session.daemon().call(ROUTES.showRun, { run: id }, { signal })
      const course = createCourse()
      await follow(session, course, id)
      await report(session, view, [...runLines(view), ...course.lines()])
    },
  },
  {
    name: 'run leave',
    arguments: '<run>',
    summary: 'take part in a run no longer',
    examples: ['run leave bafyreib4'],
    async run(session) {
      const id = await resolveRun(session, session.argument(0))
      const { signal } = session.terminal
      const left = await session.daemon().call(ROUTES.leaveRun, { run: id }, { signal })
      session.emit(left, () => [`left run ${id}`])
    },
  },
  {
    name: 'invite',
    arguments: '[run]',
    summary: 'print the link that lets others join a run',
    examples: ['invite', 'invite bafyreib4'],
    async run(session) {
      const id = await resolveRun(session, session.argument(0))
      const { signal } = session.terminal
      const invitation = await session.daemon().call(ROUTES.invite, { run: id }, { signal })
      session.emit(invitation, () => [invitation.link])
    },
  },
]

function trainerOf(session: Session): TrainerKind | undefined {
  const given = session.text('trainer')
  const kind = TRAINER_KINDS.find((known) => known === given)
  if (given === undefined || kind !== undefined) return kind
  throw new ShoalError('usage', `--trainer is ${TRAINER_KINDS.join(' or ')}, not '${given}'`)
}

/** The result of a command about one run; with `--watch` everything that follows too. */
async function report(session: Session, view: RunView, lines: readonly string[]): Promise<void> {
  if (session.options['watch'] !== true) session.emit(view, () => lines)
  else await watch(session, view)
}

/** `--json`: one line per change on stdout. Otherwise a block redrawn on stderr and the last state on stdout. */
async function watch(session: Session, start: RunView): Promise<void> {
  const { signal, stderr } = session.terminal
  const block = createStatusBlock(stderr)
  const client = session.daemon()
  const course = createCourse()
  await follow(session, course, start.id)
  let view = start
  let shown: string | undefined
  while (true) {
    const progress = `${view.status} ${view.outerStep} ${view.validationLoss}`
    if (progress !== shown) {
      if (session.json) session.emit(view, () => [])
      else if (stderr.isTTY !== true) block.print(runLine(view))
    }
    shown = progress
    const known = `${view.status} ${view.outerStep}`
    if (!session.json) block.draw([...runLines(view), ...course.lines()])
    if (view.status === 'finished' || view.status === 'failed') break
    await systemClock.sleep(WATCH_INTERVAL_MS, signal)
    view = await client.call(ROUTES.showRun, { run: view.id }, { signal })
    if (`${view.status} ${view.outerStep}` !== known) await follow(session, course, view.id)
  }
  block.draw([])
  block.end()
  if (!session.json) session.emit(view, () => [...runLines(view), ...course.lines()])
  if (view.error !== null) {
    const { code, message } = view.error
    throw new ShoalError(isFaultCode(code) ? code : 'internal', `the run has failed: ${message}`)
  }
}

/** What has happened in the run since the course was asked for last; it begins before this command, and this daemon. */
async function follow(session: Session, course: Course, run: string): Promise<void> {
  if (session.json) return
  const { signal } = session.terminal
  const input = { run, after: course.newest }
  course.add(await session.daemon().call(ROUTES.history, input, { signal }))
}
