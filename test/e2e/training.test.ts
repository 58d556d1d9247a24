import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { ROUTES } from '../../node/api/routes.ts'
import { systemClock } from '../../src/clock.ts'
import { loggedEventSchema } from '../../src/run/event-log.ts'
import { runViewSchema } from '../../src/run/view.ts'
import type { RunView } from '../../src/run/view.ts'
import { realText } from '../swarm/swarm.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

const SPEC = `
name = "e2e"
data = "moby.txt"
innerSteps = 10
outerSteps = 40
batchSequences = 4

[model]
layers = 1
heads = 2
embedding = 32
context = 32

[inner]
learningRate = 1e-2
warmupSteps = 10

[limits]
minPeers = 2
checkpointEvery = 4
roundTimeoutMs = 10000
`

let place: Workplace
let first: Daemon
let second: Daemon

beforeAll(async () => {
  place = createWorkplace()
  writeFileSync(join(place.folder, 'moby.txt'), await realText())
  writeFileSync(join(place.folder, 'spec.toml'), SPEC)
  first = await place.daemon('first')
  second = await place.daemon('second', '--bootstrap', first.ready.addresses[0] ?? '')
})
afterAll(() => place.close())

async function viewOf(daemon: Daemon, run: string): Promise<RunView> {
  return runViewSchema.parse(await daemon.json('run', 'show', run))
}

async function until(
  daemon: Daemon,
  run: string,
  done: (view: RunView) => boolean,
): Promise<RunView> {
  for (;;) {
    const view = await viewOf(daemon, run)
    if (done(view)) return view
    if (view.status === 'failed') throw new Error(`run failed: ${view.error?.message}`)
    await systemClock.sleep(100)
  }
}

test('two daemons find each other, train one run to its end, and give its model', async () => {
  const created = runViewSchema.parse(await first.json('run', 'create', 'spec.toml'))
  const run = created.id
  const list = async () => ROUTES.runs.output.parse(await second.json('run', 'list')).runs
  await expect
    .poll(list, { timeout: 45_000 })
    .toMatchObject([{ id: run, name: 'e2e', status: null }])

  await second.json('run', 'join', run)
  expect(ROUTES.invite.output.parse(await first.json('invite', run.slice(0, 20))).link).toContain(
    `shoal:${run}?peer=/ip4/127.0.0.1/tcp/`,
  )
  const watch = ['run', 'show', run, '--watch', '--json', '--data-dir', second.dataDir]
  const watched = await place.spawned(...watch)
  expect(watched).toMatchObject({ code: 0, stderr: '' })
  const lines = watched.stdout.trim().split('\n')
  const views = lines.map((line) => runViewSchema.parse(JSON.parse(line)))
  expect(views.at(-1)).toMatchObject({ status: 'finished', outerStep: 40 })
  expect(views.length).toBeGreaterThan(2)

  const one = await until(first, run, ({ status }) => status === 'finished')
  const two = await viewOf(second, run)
  expect(one.members).toHaveLength(2)
  expect(one.rounds.averaged).toBeGreaterThan(0)
  expect(one.loss ?? Infinity).toBeLessThan((one.lossStart ?? 0) - 0.5)
  expect(two.bytesSent).toBeGreaterThan(0)

  const folder = join(place.folder, 'model')
  const { checkpoints } = ROUTES.checkpoints.output.parse(await first.json('checkpoint', 'list'))
  expect(checkpoints.some(({ final }) => final)).toBe(true)
  await first.json('checkpoint', 'export', folder)
  await second.json('checkpoint', 'export', run, join(place.folder, 'before'))
  expect(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))).toMatchObject({
    n_embd: 32,
  })

  const sample = ['sample', 'model', '--prompt', 'Call me', '--tokens', '50', '--seed', '1']
  const sampled = await place.spawned(...sample)
  expect(sampled).toMatchObject({ code: 0, stderr: '' })
  expect(sampled.stdout.startsWith('Call me')).toBe(true)
  expect(await place.shoal(...sample)).toEqual(sampled)
  const asJson = await place.shoal(...sample, '--json')
  const { text, tokens } = z
    .object({ text: z.string(), tokens: z.number() })
    .parse(JSON.parse(asJson.stdout))
  expect({ tokens, length: text.length }).toEqual({ tokens: 50, length: 50 })
  const foreign = await place.shoal('sample', 'model', '--prompt', '語')
  expect(foreign).toMatchObject({ code: 2, stdout: '' })
  expect((await place.shoal('sample', '.', '--prompt', 'x')).stderr).toContain('holds no model')

  expect(await first.json('run', 'leave', run)).toEqual({ left: run })
  expect(await first.json('run', 'list', '--local')).toEqual({ runs: [] })
})

test('a daemon that starts again goes on with its runs where they stopped', async () => {
  const spec = SPEC.replace('minPeers = 2', 'minPeers = 1')
    .replace('outerSteps = 40', 'outerSteps = 100000')
    .replace('"e2e"', '"goes on"')
  writeFileSync(join(place.folder, 'long.toml'), spec)
  const { id } = runViewSchema.parse(await second.json('run', 'create', 'long.toml'))
  const before = await until(second, id, ({ outerStep }) => outerStep >= 2)
  expect(before.status).toBe('training')
  expect((await second.end('SIGTERM')).code).toBe(0)

  const again = await place.daemon('second')
  expect(again.ready.peerId).toBe(second.ready.peerId)
  const resumed = await viewOf(again, id)
  // What is shown may not be committed yet.
  expect(resumed.outerStep).toBeGreaterThanOrEqual(before.outerStep - 1)
  const later = await until(again, id, ({ outerStep }) => outerStep > resumed.outerStep)
  expect(later.lossStart).toBe(before.lossStart)

  expect((await again.end('SIGKILL')).code).toBeNull()
  const revived = await place.daemon('second')
  // The commit of the newest step goes on beside the next inner steps: kill -9 costs one step at most.
  expect((await viewOf(revived, id)).outerStep).toBeGreaterThanOrEqual(later.outerStep - 1)
  const local = ROUTES.runs.output.parse(await revived.json('run', 'list', '--local'))
  const finished = local.runs.find(({ name }) => name === 'e2e')
  expect(local.runs).toHaveLength(2)
  await revived.json('checkpoint', 'export', finished?.id ?? '', join(place.folder, 'again'))
  expect(readFileSync(join(place.folder, 'again', 'model.safetensors'))).toEqual(
    readFileSync(join(place.folder, 'before', 'model.safetensors')),
  )

  const human = await revived.shoal('run', 'show', id)
  expect(human).toMatchObject({ code: 0, stderr: '' })
  expect(human.stdout).toContain('goes on')
  expect(human.stdout).toContain('training loss, outer steps 1 to ')
  const watching = await revived.interrupted('run', 'show', id, '--watch')
  expect(watching).toMatchObject({ code: 130, stdout: '' })
  expect(watching.stderr).toMatch(/^training {2}outer step \d+\/100000/)

  const exported = ['run', 'events', id, '--export', 'goes-on.events']
  expect(await revived.json(...exported)).toMatchObject({ run: id })
  expect((await revived.end('SIGTERM')).code).toBe(0)
  await replays(id)
})

/** From the exported log alone: every outer step since the run was created, over a stop and a kill -9. */
async function replays(run: string): Promise<void> {
  const replayed = await place.shoal('run', 'replay', 'goes-on.events', '--json')
  expect(replayed).toMatchObject({ code: 0, stderr: '' })
  const lines = replayed.stdout.trim().split('\n')
  const events = lines.map((line) => loggedEventSchema.parse(JSON.parse(line)).event)
  const steps = events.flatMap((event) => (event.type === 'outer_step' ? event.outerStep : []))
  const last = Math.max(...steps)
  expect([...new Set(steps)]).toEqual(Array.from({ length: last }, (_, index) => index + 1))

  const text = (await place.shoal('run', 'replay', 'goes-on.events')).stdout
  expect(text).toContain(`goes on  ${run}\n`)
  expect(text).toMatch(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}outer step 1 {2}loss \d/m)
  expect(text).toContain(`\n${last} of 100000 outer steps`)
  writeFileSync(join(place.folder, 'no.events'), '{}\n')
  for (const file of ['no.events', 'absent.events', 'moby.txt']) {
    const refused = await place.shoal('run', 'replay', file)
    expect(refused).toMatchObject({ code: 2, stdout: '' })
    expect(refused.stderr).toContain('is no event log')
  }
}
