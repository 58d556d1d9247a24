/** The files of a stopped daemon, damaged anywhere: a run goes on from what it had committed, or is told in one line. */
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { openFileBlobs } from '../../../../node/store/file-blobs.ts'
import { openSqliteRecords } from '../../../../node/store/sqlite-records.ts'
import { systemClock } from '../../../../src/clock.ts'
import { ShoalError } from '../../../../src/errors.ts'
import { silentLogger } from '../../../../src/log.ts'
import { seededRandom } from '../../../../src/random.ts'
import { createRunStore, type RunStore, type RunVectors } from '../../../../src/run/run-store.ts'
import { createBlobReferences } from '../../../../src/store/blob-references.ts'
import { smallManifest } from '../../run/small-manifest.ts'
import { temporaryFolders } from './temporary-folder.ts'

const temporaryFolder = temporaryFolders()
const RUN = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
const ELEMENTS = 50

async function withStore<T>(folder: string, work: (store: RunStore) => Promise<T>): Promise<T> {
  const records = openSqliteRecords(join(folder, 'shoal.db'))
  try {
    const blobs = await openFileBlobs(join(folder, 'blobs'), silentLogger)
    const references = createBlobReferences(blobs)
    const deps = { records, blobs, references, clock: systemClock }
    return await work(createRunStore(RUN, smallManifest(), deps))
  } finally {
    records.close()
  }
}

const VECTORS: RunVectors = {
  parameters: Float32Array.from({ length: ELEMENTS }, (_, index) => index),
  momentum: new Float32Array(ELEMENTS).fill(0.5),
  residual: new Float32Array(ELEMENTS).fill(0.25),
  optimizer: Uint8Array.of(1, 2, 3),
}

/** A folder in which a run has committed some steps, the last of them with `VECTORS`. */
async function committedFolder(): Promise<string> {
  const folder = temporaryFolder()
  await withStore(folder, async (store) => {
    await store.setMembership({ version: 1, text: null, trainer: 'embedded' })
    for (let outerStep = 1; outerStep <= 3; outerStep++) {
      const stored = await store.storeVectors(VECTORS)
      await store.commit({
        version: 1,
        outerStep,
        tokens: 100 * outerStep,
        bytesSent: 0,
        bytesReceived: 0,
        rounds: { averaged: 0, solo: outerStep, stale: 0 },
        lossStart: 5,
        loss: 4,
        validationLoss: null,
        checkpoints: [],
        finished: false,
        round: null,
        consensusDistance: null,
        ...stored,
      })
    }
  })
  return folder
}

/** Whether the run can go on from what is in the folder; throws what a user would be told. */
async function readState(folder: string): Promise<boolean> {
  return withStore(folder, async (store) => {
    const membership = await store.membership()
    const state = await store.load()
    if (state === undefined || membership === undefined) return false
    expect(state).toMatchObject({ outerStep: 3, tokens: 300 })
    expect(await store.loadVectors(state, ELEMENTS)).toMatchObject(VECTORS)
    return true
  })
}

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
}

test.each(['a flipped bit', 'a truncated file'])(
  'with %s anywhere nothing but the committed state is read',
  async (damage) => {
    const whole = await committedFolder()
    expect(await readState(whole)).toBe(true)
    const random = seededRandom(damage)
    const told = new Set<string>()
    for (let times = 0; times < 60; times++) {
      const folder = join(temporaryFolder(), 'copy')
      mkdirSync(folder)
      cpSync(whole, folder, { recursive: true })
      const files = filesIn(folder)
      const path = files[random.integer(files.length)]!
      const { size } = statSync(path)
      if (damage === 'a truncated file') truncateSync(path, random.integer(size))
      else {
        const bytes = readFileSync(path)
        bytes[random.integer(size)]! ^= 1 << random.integer(8)
        writeFileSync(path, bytes)
      }
      try {
        await readState(folder)
      } catch (thrown) {
        // A difference from what was committed would be no fault of ours.
        if (!(thrown instanceof ShoalError)) throw thrown
        expect(thrown.message).not.toContain('\n')
        told.add(thrown.code)
      }
    }
    expect([...told]).toEqual(expect.arrayContaining(['state_corrupt', 'blob_unavailable']))
    expect(['state_corrupt', 'blob_unavailable', 'storage_failed', 'version_unsupported']).toEqual(
      expect.arrayContaining([...told]),
    )
  },
)
