/** A disk that is really full: daemons whose folder lies on a small file system of their own. Linux only. */
import { spawnSync } from 'node:child_process'
import { appendFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { runViewSchema } from '../../src/run/view.ts'
import type { RunView } from '../../src/run/view.ts'
import { realText } from '../swarm/swarm.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon } from './daemon-process.ts'

/** In a mount namespace: nobody else sees the file system, and it goes with the process. */
const NAMESPACE = ['unshare', '--user', '--map-root-user', '--mount', '--', 'sh', '-c']
const MOUNT = 'mount -t tmpfs -o size=4m none "$PWD/small" && exec "$@"'
const canMount =
  spawnSync(NAMESPACE[0]!, [...NAMESPACE.slice(1), 'mount -t tmpfs none /tmp']).status === 0

const SPEC = `
name = "full"
data = "moby.txt"
innerSteps = 4
outerSteps = 100000

[model]
layers = 1
heads = 2
embedding = 16
context = 16
`

/** Takes all space that is left, to the last byte. */
function fill(path: string): void {
  for (let bytes = 1 << 20; bytes >= 1;) {
    try {
      appendFileSync(path, Buffer.alloc(bytes))
    } catch {
      bytes >>= 1
    }
  }
}

async function view(daemon: Daemon, run: string): Promise<RunView> {
  return runViewSchema.parse(await daemon.json('run', 'show', run))
}

async function until(
  daemon: Daemon,
  run: string,
  done: (view: RunView) => boolean,
): Promise<RunView> {
  for (;;) {
    const now = await view(daemon, run)
    if (done(now)) return now
    await systemClock.sleep(100)
  }
}

describe.skipIf(!canMount)('a full disk', () => {
  test('stops a run with one line that names it; with space again the run goes on by itself', async () => {
    const place = createWorkplace([...NAMESPACE, MOUNT, 'sh'])
    try {
      mkdirSync(join(place.folder, 'small'))
      writeFileSync(join(place.folder, 'moby.txt'), await realText())
      writeFileSync(join(place.folder, 'spec.toml'), SPEC)
      const daemon = await place.daemon('small')
      const { id } = runViewSchema.parse(await daemon.json('run', 'create', 'spec.toml'))
      await until(daemon, id, ({ outerStep }) => outerStep > 2)

      const filler = join(daemon.dataDir, 'filler')
      fill(filler)
      const full = await until(daemon, id, ({ error }) => error !== null)
      expect(full.error?.code).toBe('storage_failed')
      expect(full.error?.message).toMatch(/^[^\n]*: the disk is full; free some space[^\n]*$/)
      await systemClock.sleep(1_500)
      const still = await view(daemon, id)
      expect(still.outerStep - full.outerStep).toBeLessThanOrEqual(1)
      expect(await daemon.json('status')).toMatchObject({ peerId: daemon.ready.peerId })

      rmSync(filler)
      const resumed = await until(daemon, id, ({ outerStep }) => outerStep > still.outerStep + 3)
      expect(resumed.error).toBeNull()
      expect(resumed.lossStart).toBe(full.lossStart)
      expect((await daemon.end()).code).toBe(0)
    } finally {
      await place.close()
    }
  })

  test('keeps a daemon from starting, with one line', async () => {
    const place = createWorkplace([...NAMESPACE, MOUNT.replace('4m', '8k'), 'sh'])
    try {
      mkdirSync(join(place.folder, 'small'))
      const start = ['daemon', '--data-dir', join(place.folder, 'small'), '--no-mdns']
      const { code, stdout, stderr } = await place.spawned(...start, '--api-port', '0')
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
      expect(stderr).toMatch(/^error: [^\n]*the disk is full; free some space[^\n]*\n$/)
    } finally {
      await place.close()
    }
  })
})
