/**
 * Daemons killed with SIGKILL at random moments: in their start, between commits, inside commits.
 *
 * The twin of such a daemon, with the same identity and the same run, is never killed. A peer that trains alone is
 * deterministic, so both must come to the same state, bit by bit: whatever a crash had lost or applied twice (a step, a
 * residual, a moment of Adam, a batch of data) would show.
 */
import { cpSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { seededRandom } from '../../src/random.ts'
import { runViewSchema } from '../../src/run/view.ts'
import type { RunView } from '../../src/run/view.ts'
import { realText } from '../swarm/swarm.ts'
import { committedState } from './committed-state.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

const OUTER_STEPS = 200
/** At least; at most three times as many, on a machine so busy that most kills come before the training. */
const KILLS = 8
/** When to kill, in what a daemon takes to its first outer steps; after a kill that is longer. */
const KILLED = { from: 0.3, to: 2.5 }
/** Commits of each run that kills have come after: some of the kills were in the midst of training. */
const STEPS_SEEN = 3

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
beforeEach(async () => {
  place = createWorkplace()
  writeFileSync(join(place.folder, 'moby.txt'), await realText())
})
afterEach(() => place.close())

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
  const startedMs = performance.now()
  const again = await place.daemon('twin')
  const before = await views(again, runs)
  await until(again, runs, ({ id, outerStep }) =>
    before.some((view) => view.id === id && outerStep > view.outerStep),
  )
  const startMs = performance.now() - startedMs
  await again.end()
  cpSync(join(place.folder, 'twin'), join(place.folder, 'victim'), { recursive: true })

  const random = seededRandom('kill -9')
  const steps = new Map<string, number[]>(runs.map((run) => [run, []]))
  const wasSeen = (of: readonly number[]): boolean => new Set(of).size >= STEPS_SEEN
  for (let kill = 0; kill < 3 * KILLS; kill++) {
    if (kill >= KILLS && [...steps.values()].every(wasSeen)) break
    const { from, to } = KILLED
    await place.killed('victim', startMs * (from + random.uniform() * (to - from)))
    for (const run of runs) {
      const state = await committedState(join(place.folder, 'victim'), run)
      steps.get(run)?.push(state?.outerStep ?? -1)
    }
  }
  for (const of of steps.values()) {
    expect(of).toEqual(of.toSorted((a, b) => a - b))
    expect(of).toSatisfy(wasSeen)
    expect(of.at(-1)).toBeLessThan(OUTER_STEPS)
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
}, 240_000)
