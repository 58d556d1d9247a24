/** Scripts in Python behind real nodes. What this machine's Python lacks is skipped, and the test's name says so. */
import { writeFileSync } from 'node:fs'
import { delimiter, join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { ROUTES } from '../../node/api/routes.ts'
import { systemClock } from '../../src/clock.ts'
import { runViewSchema, type RunView } from '../../src/run/view.ts'
import { realText } from '../swarm/swarm.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'
import { findPython, pythonNote, runPython, type Script } from './python.ts'

const python = findPython()
const torch = findPython('torch', 'numpy')

let place: Workplace
let first: Daemon
let second: Daemon

beforeAll(async () => {
  if (python === undefined) return
  place = createWorkplace()
  writeFileSync(join(place.folder, 'moby.txt'), await realText())
  first = await place.daemon('first')
  second = await place.daemon('second', '--bootstrap', first.ready.addresses[0] ?? '')
})
afterAll(async () => {
  await place?.close()
})

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

describe.skipIf(python === undefined)(`the client (${pythonNote(python, 'anything')})`, () => {
  for (const [command, what] of [
    [python, 'standard library'],
    [torch, 'numpy and torch'],
  ] as const) {
    test.skipIf(command === undefined)(
      `alone (${what}: ${pythonNote(command, what)})`,
      async () => {
        const tests = runPython(command ?? '', ['-m', 'unittest', 'discover', 'test/python'])
        expect({ code: await tests.ended, output: tests.output() }).toMatchObject({ code: 0 })
      },
    )
  }

  test('with two nodes', async () => {
    const folders = [first.dataDir, second.dataDir].join(delimiter)
    const tests = runPython(python ?? '', ['test/python/nodes.py'], { SHOAL_TEST_NODES: folders })
    expect({ code: await tests.ended, output: tests.output() }).toMatchObject({ code: 0 })
  })
})

test('waiting for what a script says leaves no listener behind', async () => {
  const script = runPython(process.execPath, [
    '-e',
    'let n = 0; const timer = setInterval(() => ++n < 50 ? console.log(n) : clearInterval(timer), 5)',
  ])
  await script.says(/49/)
  expect(script.child.stdout?.listenerCount('data')).toBe(1)
  expect(script.child.stderr?.listenerCount('data')).toBe(1)
  expect(await script.ended).toBe(0)
})

const SPEC = `
data = "moby.txt"
innerSteps = 10
batchSequences = 4

[model]
layers = 2
heads = 2
embedding = 32
context = 32

[inner]
learningRate = 1e-2
warmupSteps = 10

[limits]
minPeers = 2
checkpointEvery = 4
roundTimeoutMs = 20000
`

/** Numbers that the script prints: the validation loss on the windows of the engine. */
function validationLosses(script: Script): number[] {
  return [...script.output().matchAll(/validation loss ([\d.]+)/g)].map(([, loss]) => Number(loss))
}

describe.skipIf(torch === undefined)(`PyTorch (${pythonNote(torch, 'torch and numpy')})`, () => {
  function train(daemon: Daemon, ...settings: string[]): Script {
    const script = runPython(
      torch ?? '',
      [resolve('scripts/train.py'), `--data_dir=${daemon.dataDir}`, '--threads=1', ...settings],
      { OMP_NUM_THREADS: '1' },
    )
    onTestFinished(() => void script.child.kill('SIGKILL'))
    return script
  }

  async function linkOf(script: Script): Promise<{ link: string; run: string }> {
    await script.says(/shoal:\S+/)
    const link = /shoal:\S+/.exec(script.output())?.[0] ?? ''
    return { link, run: /shoal:(\w+)/.exec(link)?.[1] ?? '' }
  }

  test('two trainers behind two nodes train one model', async () => {
    const sizes = ['--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4']
    const run = [
      '--total_outer_steps=6',
      '--inner_steps=10',
      '--min_peers=2',
      '--learning_rate=1e-2',
    ]
    const data = `--data=${join(place.folder, 'moby.txt')}`
    const one = train(first, data, ...sizes, ...run)
    const { link, run: id } = await linkOf(one)
    const two = train(second, `--run=${link}`)
    expect(await one.ended).toBe(0)
    expect(await two.ended).toBe(0)

    const view = await viewOf(first, id)
    expect(view).toMatchObject({ status: 'finished', rounds: { averaged: 6, solo: 0, stale: 0 } })
    const [start = 0, end = 0] = validationLosses(one)
    // The same text, windows and GPT as in the embedded engine, which has evaluated them for the node.
    expect(Math.abs(start - (view.lossStart ?? 0))).toBeLessThan(1e-5)
    expect(Math.abs(end - (view.validationLoss ?? 0))).toBeLessThan(1e-5)
    expect(end).toBeLessThan(start - 0.5)
    expect(validationLosses(two)).toEqual(validationLosses(one))
    await first.json('run', 'leave', id)
    await second.json('run', 'leave', id)
  })

  test.each(['relu-squared', 'gelu'])(
    'a trainer and the embedded engine train one model (%s)',
    async (activation) => {
      const spec = `name = "mixed"\nouterSteps = 6\n${SPEC}`
      const file = join(place.folder, 'mixed.toml')
      writeFileSync(file, spec.replace('layers = 2', `layers = 2\nactivation = "${activation}"`))
      const { id } = runViewSchema.parse(await first.json('run', 'create', file))
      const { link } = ROUTES.invite.output.parse(await first.json('invite', id))
      const script = train(second, `--run=${link}`)
      expect(await script.ended).toBe(0)
      const view = await until(first, id, ({ status }) => status === 'finished')
      expect(view.rounds.averaged).toBeGreaterThan(0)
      const [start = 0, end = 0] = validationLosses(script)
      expect(Math.abs(start - (view.lossStart ?? 0))).toBeLessThan(1e-5)
      expect(Math.abs(end - (view.validationLoss ?? 0))).toBeLessThan(1e-5)
      expect(end).toBeLessThan(start - 0.5)
      const engines = (await viewOf(second, id)).validationLoss
      expect(Math.abs(end - (engines ?? 0))).toBeLessThan(1e-5)
      await first.json('run', 'leave', id)
      await second.json('run', 'leave', id)
    },
  )

  test('script and node may be killed: each notices the other, and the run goes on', async () => {
    const file = join(place.folder, 'long.toml')
    writeFileSync(file, `name = "long"\nouterSteps = 100000\n${SPEC}`)
    const { id } = runViewSchema.parse(await first.json('run', 'create', file))
    const { link } = ROUTES.invite.output.parse(await first.json('invite', id))
    const doomed = train(second, `--run=${link}`)
    await doomed.says(/outer step 2:/)
    doomed.child.kill('SIGKILL')
    await doomed.ended

    const isSilent = ({ members }: RunView): boolean =>
      members.some(({ peer, status }) => peer === second.ready.peerId && status === 'silent')
    const noticed = await until(first, id, isSilent)
    expect((await viewOf(second, id)).status).toBe('silent')
    await until(first, id, ({ outerStep }) => outerStep > noticed.outerStep + 2)

    const script = train(second, `--run=${id}`)
    await script.says(/outer step \d+:/)
    expect(script.output()).not.toContain('outer step 0 of')
    const before = await until(second, id, ({ status }) => status === 'training')
    expect(await second.end('SIGKILL')).toMatchObject({ code: null })
    await script.says(/waiting for it/)
    second = await place.daemon('second', '--bootstrap', first.ready.addresses[0] ?? '')
    await until(second, id, ({ outerStep }) => outerStep > before.outerStep + 1)
    expect(script.child.exitCode).toBeNull()
    script.child.kill('SIGKILL')
    await first.json('run', 'leave', id)
    await second.json('run', 'leave', id)
  }, 180_000)
})
