/**
 * Daemons killed with SIGKILL at random moments: in their start, between commits, inside commits.
 *
 * The twin of such a daemon, with the same identity and the same run, is never killed. A peer that trains alone is
 * deterministic, so both must come to the same state, bit by bit: whatever a crash had lost or applied twice (a step, a
 * residual, a moment of Adam, a batch of data) would show.
 */
import { cpSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { seededRandom } from '../../src/random.ts'
import { runViewSchema } from '../../src/run/view.ts'
import type { RunView } from '../../src/run/view.ts'
import { realText } from '../swarm/swarm.ts'
import { committedState } from './committed-state.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

const OUTER_STEPS = 200
const KILLS = 8
/** A daemon trains a second or so after its start. */
const KILLED_MS = { from: 400, to: 2_500 }

/** Steps of a few milliseconds, each of which is committed: most of the time is spent inside commits. */
const specOf = (name: string, averaging: string): string => `
name = "${name}"
data = "moby.txt"
innerSteps = 2
outerSteps = ${OUTER_STEPS}
batchSequences = 1

[model]
layers = 1
heads = 2
embedding = 16
context = 16

[inner]
learningRate = 1e-2
warmupSteps = 10

[averaging]
${averaging}

[limits]
checkpointEvery = 25
`

const SPECS = {
  gossip: 'rule = "gossip-diloco"\nerrorFeedback = 1',
  'all-reduce': 'rule = "diloco"\npseudoGradientCodec = "topk-1024-int4"',
  // Half of the inner steps are done beside the round before, from local parameters that are committed with them.
  fragments: 'rule = "diloco"\nfragments = 2\noverlapSteps = 1\nerrorFeedback = 1',
}

let place: Workplace
beforeAll(async () => {
  place = createWorkplace()
  writeFileSync(join(place.folder, 'moby.txt'), await realText())
})
afterAll(() => place.close())

async function views(daemon: Daemon, runs: readonly string[]): Promise<RunView[]> {
  const shown = runs.map((run) => daemon.json('run', 'show', run))
  return (await Promise.all(shown)).map((view) => runViewSchema.parse(view))
}

async function until(
  daemon: Daemon,
  runs: readonly string[],
  done: (view: RunView) => boolean,
): Promise<void> {
  for (;;) {
    const now = await views(daemon, runs)
    const failed = now.find(({ status }) => status === 'failed')
    if (failed !== undefined) throw new Error(`run failed: ${failed.error?.message}`)
    if (now.every(done)) return
    await systemClock.sleep(100)
  }
}

test('a node that is killed again and again does what its twin does that never is', async () => {
  const twin = await place.daemon('twin')
  const runs: string[] = []
  for (const [name, averaging] of Object.entries(SPECS)) {
    writeFileSync(join(place.folder, `${name}.toml`), specOf(name, averaging))
    runs.push(runViewSchema.parse(await twin.json('run', 'create', `${name}.toml`)).id)
  }
  await until(twin, runs, ({ outerStep }) => outerStep > 0)
  await twin.end()
  cpSync(join(place.folder, 'twin'), join(place.folder, 'victim'), { recursive: true })

  const random = seededRandom('kill -9')
  const steps = new Map<string, number[]>(runs.map((run) => [run, []]))
  for (let kill = 0; kill < KILLS; kill++) {
    const { from, to } = KILLED_MS
    await place.killed('victim', from + random.uniform() * (to - from))
    for (const run of runs) {
      const state = await committedState(join(place.folder, 'victim'), run)
      steps.get(run)?.push(state?.outerStep ?? -1)
    }
  }
  for (const of of steps.values()) {
    expect(of).toEqual(of.toSorted((a, b) => a - b))
    // Some of the kills were in the midst of training.
    expect(new Set(of).size).toBeGreaterThan(2)
  }
  for (const name of ['victim', 'twin']) {
    const daemon = await place.daemon(name)
    await until(daemon, runs, ({ status }) => status === 'finished')
    await daemon.end()
  }
  for (const run of runs) {
    const [victim, twins] = await Promise.all(
      ['victim', 'twin'].map((name) => committedState(join(place.folder, name), run)),
    )
    expect(victim?.outerStep).toBe(OUTER_STEPS)
    expect(victim?.residual).toBeDefined()
    // How long a round took differs, what came of it must not.
    expect({ ...victim, round: null }).toEqual({ ...twins, round: null })
  }
})
