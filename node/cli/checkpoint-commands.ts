/** `shoal checkpoint …`. */
import { resolve } from 'node:path'
import { ROUTES } from '../api/routes.ts'
import { bytes, table } from './format.ts'
import { resolveRun } from './session.ts'
import type { Command } from './session.ts'

export const CHECKPOINT_COMMANDS: readonly Command[] = [
  {
    name: 'checkpoint list',
    arguments: '[run]',
    summary: "list a run's checkpoints that this node holds",
    examples: ['checkpoint list', 'checkpoint list bafyreib4 --json'],
    async run(session) {
      const run = await resolveRun(session, session.argument(0))
      const { signal } = session.terminal
      const listed = await session.daemon().call(ROUTES.checkpoints, { run }, { signal })
      session.emit({ run, ...listed }, () =>
        table(
          ['STEP', 'SIZE', 'KIND', 'CID'],
          listed.checkpoints.map((checkpoint) => [
            String(checkpoint.outerStep),
            bytes(checkpoint.bytes),
            checkpoint.final ? 'final merge' : 'outer state',
            checkpoint.cid,
          ]),
          'no checkpoints yet',
        ),
      )
    },
  },
  {
    name: 'checkpoint export',
    arguments: '<run-or-folder> [folder]',
    summary: 'write a checkpoint as a Hugging Face style folder',
    examples: ['checkpoint export my-model', 'checkpoint export bafyreib4 my-model'],
    options: [{ flags: '--checkpoint <cid>', summary: 'which one (default: the newest)' }],
    async run(session) {
      const [first = '', second] = [session.argument(0), session.argument(1)]
      const run = await resolveRun(session, second === undefined ? undefined : first)
      const { cwd, signal } = session.terminal
      const folder = resolve(cwd, second ?? first)
      const checkpoint = session.text('checkpoint')
      const input = { run, folder, ...(checkpoint !== undefined && { checkpoint }) }
      const written = await session.daemon().call(ROUTES.exportCheckpoint, input, { signal })
      session.emit({ run, ...written }, () => [
        ...table(
          ['FILE', 'SIZE'],
          written.files.map((file) => [file.name, bytes(file.bytes)]),
          'no files',
        ),
        `written to ${written.folder}; try \`shoal sample ${written.folder} --prompt TEXT\``,
      ])
    },
  },
]
