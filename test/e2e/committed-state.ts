/** What a daemon that is not running has committed of a run, read from its folder; the folder is left as it is. */
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openFileBlobs } from '../../node/store/file-blobs.ts'
import { openSqliteRecords } from '../../node/store/sqlite-records.ts'
import { systemClock } from '../../src/clock.ts'
import { silentLogger } from '../../src/log.ts'
import { modelSchema } from '../../src/run/model-schema.ts'
import { decodeManifest, parseRunId } from '../../src/run/run-id.ts'
import { createRunStore, type StoredState } from '../../src/run/run-store.ts'
import { createBlobReferences } from '../../src/store/blob-references.ts'

/** Throws when a part of it is missing or damaged; undefined before the first commit. */
export async function committedState(
  dataDir: string,
  run: string,
): Promise<StoredState | undefined> {
  const copy = mkdtempSync(join(tmpdir(), 'shoal-copy-'))
  cpSync(dataDir, copy, { recursive: true })
  const records = openSqliteRecords(join(copy, 'shoal.db'))
  try {
    const blobs = await openFileBlobs(join(copy, 'blobs'), silentLogger)
    const bytes = await blobs.get(parseRunId(run))
    if (bytes === undefined) throw new Error(`the manifest of ${run} is not there`)
    const manifest = decodeManifest(bytes)
    const references = createBlobReferences(blobs)
    const deps = { records, blobs, references, clock: systemClock }
    const store = createRunStore(run, manifest, deps)
    const state = await store.load()
    // Every blob is read and held against its hash.
    if (state !== undefined) await store.loadVectors(state, modelSchema(manifest.model).size)
    return state
  } finally {
    records.close()
    rmSync(copy, { recursive: true, force: true })
  }
}
