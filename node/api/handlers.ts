/** What each route of the local API does: parsed input in, plain data out. No HTTP here. */
import { isAbsolute } from 'node:path'
import type { z } from 'zod'
import { ShoalError } from '../../src/errors.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { ModelFiles } from '../../src/run/starting-point.ts'
import { readTextFiles } from '../data.ts'
import { isCid, readModelFiles } from '../model-files.ts'
import { VERSION } from '../version.ts'
import { writeCheckpointFolder } from './checkpoint-folder.ts'
import { parseInput } from '../validation.ts'
import { ROUTES } from './routes.ts'
import type { CallId, Route } from './routes.ts'

export interface CallContext {
  /** Fires at the route's deadline and when the caller hangs up. */
  signal: AbortSignal
}

/** Parses what came in by the route's input schema and answers by its output schema. */
export interface Handler {
  route: Route
  call: (raw: Record<string, unknown>, context: CallContext) => Promise<unknown>
}

export interface HandlerOptions {
  node: ShoalNode
  dataDir: string
  apiUrl: () => string
  /** Begins a clean shutdown; must not wait for it. */
  shutdown: () => void
}

/** One handler per route: a missing one does not compile. */
export function createHandlers(options: HandlerOptions): Record<CallId, Handler> {
  const { node, dataDir, apiUrl, shutdown } = options
  return {
    health: handler(ROUTES.health, () => ({ ok: true as const })),
    node: handler(ROUTES.node, () => ({
      ...node.status(),
      version: VERSION,
      apiUrl: apiUrl(),
      dataDir,
      pid: process.pid,
    })),
    peers: handler(ROUTES.peers, () => ({ peers: node.peers() })),
    connect: handler(ROUTES.connect, async ({ address }, { signal }) => ({
      peer: await node.connect(address, signal),
    })),
    runs: handler(ROUTES.runs, async ({ discover }, { signal }) => ({
      runs: await node.listRuns({ discover, signal }),
    })),
    createRun: handler(ROUTES.createRun, async ({ spec, trainer }, { signal }) => {
      const text = await readOwnText(spec.data, signal)
      return node.createRun(spec, text, { trainer, from: await readStart(spec.from, signal) })
    }),
    joinRun: handler(ROUTES.joinRun, async ({ run, data, trainer }, { signal }) =>
      node.joinRun(run, { signal, trainer, text: await readOwnText(data, signal) }),
    ),
    showRun: handler(ROUTES.showRun, ({ run }) => node.run(run)),
    leaveRun: handler(ROUTES.leaveRun, async ({ run }) => {
      await node.leaveRun(run)
      return { left: run }
    }),
    invite: handler(ROUTES.invite, ({ run }) => ({ link: node.invite(run) })),
    board: handler(ROUTES.board, ({ run }) => ({ board: node.run(run).board })),
    writeBoard: handler(ROUTES.writeBoard, async ({ run, key, value }) => {
      await node.writeBoard(run, key, value)
      return { board: node.run(run).board }
    }),
    checkpoints: handler(ROUTES.checkpoints, ({ run }) => ({ checkpoints: node.checkpoints(run) })),
    exportCheckpoint: handler(ROUTES.exportCheckpoint, async (input, { signal }) => {
      const files = await node.exportCheckpoint(input.run, input.checkpoint)
      return {
        folder: input.folder,
        files: await writeCheckpointFolder(input.folder, files, signal),
      }
    }),
    shutdown: handler(ROUTES.shutdown, () => {
      shutdown()
      return { stopping: true as const }
    }),
  }
}

function handler<I extends z.ZodObject, O extends z.ZodType>(
  route: Route<I, O>,
  answer: (input: z.output<I>, context: CallContext) => z.output<O> | Promise<z.output<O>>,
): Handler {
  const code = route.invalid ?? 'body_invalid'
  return {
    route,
    call: async (raw, context) =>
      answer(parseInput(route.input, raw, code, `${route.method} ${route.path}`), context),
  }
}

/** A relative path would mean the daemon's working folder, which no caller has in mind. */
async function readOwnText(
  path: string | undefined,
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  if (path === undefined) return undefined
  if (!isAbsolute(path)) {
    throw new ShoalError('data_unreadable', `${path} is a relative path: give an absolute one`)
  }
  return await readTextFiles(path, { signal })
}

/** Undefined for a CID, which the node itself can follow. */
async function readStart(
  from: string | undefined,
  signal: AbortSignal,
): Promise<ModelFiles | undefined> {
  if (from === undefined || isCid(from)) return undefined
  if (!isAbsolute(from)) {
    throw new ShoalError(
      'folder_invalid',
      `${from} is neither a CID nor an absolute path: give one of them`,
    )
  }
  return await readModelFiles(from, signal)
}
