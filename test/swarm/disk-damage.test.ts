/** Files that a disk has damaged, on the stores of the daemon: found by hash, had from peers, or told; never trained on. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, test } from 'vitest'
import { openFileBlobs } from '../../node/store/file-blobs.ts'
import { openSqliteRecords } from '../../node/store/sqlite-records.ts'
import { systemClock } from '../../src/clock.ts'
import type { ShoalNode } from '../../src/node.ts'
import { createRunStore, type StoredState } from '../../src/run/run-store.ts'
import type { RunView } from '../../src/run/view.ts'
import { createBlobReferences } from '../../src/store/blob-references.ts'
import { createRecorder, type RecordedEvent } from '../unit/net/memory-network.ts'
import { temporaryFolders } from '../unit/node/store/temporary-folder.ts'
import { createSwarm, memoryStores, realText, tinySpec, waitForRun, type Stores } from './swarm.ts'

const text = await realText()
const temporaryFolder = temporaryFolders()

/** The files of one node. */
interface Disk {
  open(): Promise<Stores & { close(): void }>
  /** Flips one bit of a blob. */
  flip(cid: string): void
  truncate(cid: string): void
  /** Flips one bit of a record. */
  flipRecord(key: string): void
}

function createDisk(logger: Parameters<typeof openFileBlobs>[1]): Disk {
  const folder = temporaryFolder()
  const pathOf = (cid: string): string => join(folder, 'blobs', cid.slice(-3, -1), cid)
  return {
    async open() {
      const records = openSqliteRecords(join(folder, 'shoal.db'))
      const blobs = await openFileBlobs(join(folder, 'blobs'), logger)
      return { records, blobs, close: () => records.close() }
    },
    flip(cid) {
      const bytes = readFileSync(pathOf(cid))
      bytes[bytes.length >> 1]! ^= 4
      writeFileSync(pathOf(cid), bytes)
    },
    truncate: (cid) => truncateSync(pathOf(cid), 100),
    flipRecord(key) {
      const database = new DatabaseSync(join(folder, 'shoal.db'))
      const value = database.prepare('SELECT value FROM records WHERE key = ?').get(key)?.['value']
      if (!(value instanceof Uint8Array)) throw new Error(`no record ${key}`)
      value[value.length - 20]! ^= 1
      database.prepare('UPDATE records SET value = ? WHERE key = ?').run(value, key)
      database.close()
    },
  }
}

interface Setting {
  id: string
  logged: RecordedEvent[]
  partner: ShoalNode
  victim: Restartable
}

interface Restartable {
  node: ShoalNode
  stop(): Promise<StoredState>
  start(): Promise<void>
  startPartner(): Promise<void>
  readonly disk: Disk
}

/** Trains on two nodes, the second of which keeps its state on a disk. */
async function withDisk(seed: string, work: (setting: Setting) => Promise<void>): Promise<void> {
  const { logger, events: logged } = createRecorder()
  const swarm = await createSwarm(0, seed, { logger: () => logger })
  const disk = createDisk(logger)
  let files = await disk.open()
  try {
    const memory = memoryStores()
    const partner = await swarm.add(0, memory)
    const { id } = await partner.createRun(
      tinySpec({
        outerSteps: 10_000,
        limits: { minPeers: 2, roundTimeoutMs: 4_000, checkpointEvery: 1_000 },
      }),
      text,
    )
    const victim: Restartable = {
      disk,
      node: await swarm.add(1, files),
      async stop() {
        await victim.node.stop()
        const state = await stateOf(partner, id, files)
        files.close()
        return state
      },
      async start() {
        files = await disk.open()
        victim.node = await swarm.add(1, files)
      },
      async startPartner() {
        await swarm.add(0, memory)
      },
    }
    await victim.node.joinRun(id)
    await waitForRun(victim.node, id, hasAveraged)
    await work({ id, logged, partner, victim })
  } finally {
    await swarm.stop()
    files.close()
  }
}

const hasAveraged = ({ rounds, outerStep, round, status }: RunView): boolean =>
  status === 'training' && rounds.averaged > 0 && outerStep > 3 && round?.outcome === 'averaged'

async function stateOf(
  node: ShoalNode,
  id: string,
  { records, blobs }: Stores,
): Promise<StoredState> {
  const references = createBlobReferences(blobs)
  const store = createRunStore(id, node.manifest(id), {
    records,
    blobs,
    references,
    clock: systemClock,
  })
  const state = await store.load()
  if (state === undefined) throw new Error('nothing has been committed')
  return state
}

const damages: Record<string, (disk: Disk, state: StoredState, id: string) => void> = {
  'a truncated blob of parameters': (disk, { parameters }) => disk.truncate(parameters.chunks[0]!),
  'a flipped bit in the parameters': (disk, { parameters }) => disk.flip(parameters.chunks[0]!),
  'a flipped bit in the momentum': (disk, { momentum }) => disk.flip(momentum.chunks[0]!),
  'a flipped bit in the inner optimizer': (disk, { optimizer }) => disk.flip(optimizer.chunks[0]!),
  'a flipped bit in the state record': (disk, _, id) => disk.flipRecord(`run/${id}/state`),
  'a flipped bit in the manifest': (disk, _, id) => disk.flip(id),
  'a flipped bit in the copy of the manifest': (disk, _, id) =>
    disk.flipRecord(`run/${id}/manifest`),
}

test('beside a partner whatever is damaged is found and had from it', async () => {
  await withDisk('damage beside a partner', async ({ id, logged, partner, victim }) => {
    for (const [name, damage] of Object.entries(damages)) {
      const state = await victim.stop()
      damage(victim.disk, state, id)
      logged.length = 0
      await victim.start()
      const isBack = (view: RunView): boolean =>
        hasAveraged(view) && (view.round?.outerStep ?? 0) > state.outerStep
      const view = await waitForRun(victim.node, id, isBack).catch((thrown: unknown) => {
        throw new Error(`${name}: ${String(thrown)}`)
      })
      expect(view.error, name).toBeNull()
      const noticed = logged.map(({ event }) => event)
      const isCopy = name.includes('copy')
      if (!isCopy)
        expect(noticed, name).toEqual(expect.arrayContaining([expect.stringMatching('_corrupt')]))
      expect(view.loss, name).toBeLessThan(partner.run(id).lossStart ?? 0)
    }
  })
})

test.each(['a flipped bit in the parameters', 'a flipped bit in the state record'])(
  'alone a node says in one line that there is %s, and waits for a peer',
  async (name) => {
    await withDisk(`${name}, alone`, async ({ id, partner, victim }) => {
      const state = await victim.stop()
      await partner.stop()
      damages[name]?.(victim.disk, state, id)
      await victim.start()
      const { error } = await waitForRun(victim.node, id, (view) => view.error !== null)
      expect(error?.code).toBe('state_corrupt')
      expect(error?.message).toMatch(/^[^\n]*damaged: connect to a peer of the run[^\n]*$/)
      const steps: string[] = []
      victim.node.onEvent(({ type }) => void steps.push(type))
      await systemClock.sleep(2_500)
      expect(steps).not.toContain('inner_progress')
      expect(victim.node.run(id)).toMatchObject({ status: 'fetching' })
      await victim.startPartner()
      const view = await waitForRun(victim.node, id, hasAveraged)
      expect(view.error).toBeNull()
    })
  },
)
