/** What each route of the local API does: parsed input in, plain data out. No HTTP here. */
import { isAbsolute } from 'node:path'
import type { Clock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { ModelFiles } from '../../src/run/starting-point.ts'
import { readTextFiles } from '../data.ts'
import { isCid, readModelFiles } from '../model-files.ts'
import { VERSION } from '../version.ts'
import { writeCheckpointFolder } from './checkpoint-folder.ts'
import { dashboardHandlers } from './dashboard-handlers.ts'
import { blobHandlers, serviceHandlers } from './exchange-handlers.ts'
import { handler, type Handler } from './handler.ts'
import { observationHandlers } from './observation-handlers.ts'
import { openApiOf } from './openapi.ts'
import { createOutsideServices } from './outside-services.ts'
import { ROUTES } from './routes.ts'
import type { CallId } from './routes.ts'
import { trainingHandlers } from './training-handlers.ts'

export type { Handler } from './handler.ts'

export interface HandlerOptions {
  node: ShoalNode
  /** What the dashboard gets for the code of its link. */
  token: string
  clock: Clock
  dataDir: string
  apiUrl: () => string
  /** Begins a clean shutdown; must not wait for it. */
  shutdown: () => void
}

export interface Handlers {
  /** One handler per route: a missing one does not compile. */
  handlers: Record<CallId, Handler>
  close(): void
}

export function createHandlers(options: HandlerOptions): Handlers {
  const { node, clock } = options
  const services = createOutsideServices({ services: node.services, clock })
  return {
    handlers: {
      ...nodeHandlers(options),
      ...runHandlers(node),
      ...observationHandlers(node),
      ...dashboardHandlers(options),
      ...trainingHandlers(options),
      ...blobHandlers(options),
      ...serviceHandlers(node, services),
    },
    close: () => services.close(),
  }
}

function nodeHandlers({ node, dataDir, apiUrl, shutdown }: HandlerOptions) {
  const document = openApiOf(ROUTES)
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
    diagnose: handler(ROUTES.diagnose, ({ peer }, { signal }) => node.diagnose({ peer, signal })),
    shutdown: handler(ROUTES.shutdown, () => {
      shutdown()
      return { stopping: true as const }
    }),
    openApi: handler(ROUTES.openApi, () => document),
  }
}

function runHandlers(node: ShoalNode) {
  return {
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
    manifest: handler(ROUTES.manifest, ({ run }) => node.manifest(run)),
    members: handler(ROUTES.members, ({ run }) => ({ peers: node.members(run) })),
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
