/**
 * Daemons that come and are killed (SIGKILL) in a swarm that trains one all-reduce run: in the shape of PCCL's stress
 * test, of which nobody is the master here. Every 0.5 to 2 s one is started (a new one, or one that was killed before)
 * with weight 0.6, or one is killed with 0.4, while there are at most `processes`, and never fewer than two contribute.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { connectDaemon } from '../../node/api/client.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { systemClock } from '../../src/clock.ts'
import { messageOf } from '../../src/errors.ts'
import { seededRandom, type Random } from '../../src/random.ts'
import { createWorkplace, type Daemon, type Workplace } from '../e2e/daemon-process.ts'
import { realText } from '../swarm/swarm.ts'
import { createMeasures, type Measures, type Summary } from './measures.ts'

const SPAWN_WEIGHT = 0.6
const PAUSE_MS = { from: 500, to: 2_000 }
const CONTRIBUTORS_MIN = 2
/** No kill so soon after there were only two. */
const LOW_MS = 1_000
/** Of those that were killed and of new ones, which is started. */
const RESTART_WEIGHT = 0.5
const BOOTSTRAP_PEERS = 3
/** When nobody is killed any more all must soon hold the same for some steps in a row. */
const SETTLE_MS = 30_000
const EQUAL_STEPS = 3
const REPORT_MS = 10_000

/** Ten of it fit on two cores. Each checkpoint's CID tells whether all hold the same parameters and momentum. */
const SPEC = `
name = "churn"
data = "moby.txt"
innerSteps = 5
outerSteps = 1000000
batchSequences = 4

[model]
layers = 1
heads = 2
embedding = 16
context = 16

[inner]
learningRate = 3e-3
warmupSteps = 10

[averaging]
rule = "diloco"

[limits]
minPeers = 2
checkpointEvery = 1
roundTimeoutMs = 4000
`

export interface ChurnOptions {
  seconds: number
  processes: number
  seed: string
  signal: AbortSignal
  onReport: (line: string) => void
}

interface Peer {
  name: string
  daemon: Daemon
  /** Ends with the process. */
  ending: AbortController
}

interface Churn {
  place: Workplace
  random: Random
  measures: Measures
  run: { id: string }
  /** Up, by name. */
  up: Map<string, Peer>
  /** Being started. */
  starting: Set<string>
  killed: string[]
  fresh: number
}

export async function runChurn(options: ChurnOptions): Promise<Summary> {
  const { seconds, seed, signal } = options
  const place = createWorkplace()
  writeFileSync(join(place.folder, 'moby.txt'), await realText())
  writeFileSync(join(place.folder, 'spec.toml'), SPEC)
  const churn: Churn = {
    place,
    random: seededRandom('churn', seed),
    measures: createMeasures(),
    run: { id: '' },
    up: new Map(),
    starting: new Set(),
    killed: [],
    fresh: 0,
  }
  const { measures } = churn
  try {
    await startFirst(churn)
    await start(churn)
    await stir(churn, options, performance.now() + seconds * 1000)
    const survivors = await settled(churn, signal)
    const summary = measures.summary()
    return {
      ...summary,
      faults: [...summary.faults, ...(survivors === undefined ? [] : [survivors])],
    }
  } finally {
    for (const { ending } of churn.up.values()) ending.abort()
    await place.close()
  }
}

/** Kills and starts until `endsMs`. */
async function stir(
  churn: Churn,
  { processes, signal, onReport }: ChurnOptions,
  endsMs: number,
): Promise<void> {
  const { random, measures, up, starting } = churn
  let lowMs = performance.now()
  let reportedMs = performance.now()
  while (performance.now() < endsMs) {
    const { from, to } = PAUSE_MS
    await systemClock.sleep(from + random.uniform() * (to - from), signal)
    const nowMs = performance.now()
    const contributors = measures.contributors()
    const isLow = contributors.length <= CONTRIBUTORS_MIN
    const isFull = up.size + starting.size >= processes
    if (isLow) lowMs = nowMs
    const spawns = isLow || random.uniform() < SPAWN_WEIGHT
    if (spawns && !isFull) void start(churn)
    else if (!spawns && nowMs - lowMs > LOW_MS) {
      await kill(churn, contributors[random.integer(contributors.length)] ?? '')
    }
    if (nowMs - reportedMs < REPORT_MS) continue
    reportedMs = nowMs
    const { outerStep, averagedRounds, killed, longestGapMs, lossLast } = measures.summary()
    onReport(
      `${up.size} up, ${contributors.length} contribute, ${killed} killed, outer step ${outerStep}, ` +
        `${averagedRounds} averaged rounds, longest gap ${longestGapMs} ms, loss ${lossLast?.toFixed(3) ?? '-'}`,
    )
  }
}

async function startFirst(churn: Churn): Promise<void> {
  const peer = await startDaemon(churn, `peer-${churn.fresh++}`)
  churn.measures.begins(peer.name, 'joining', performance.now())
  const created = await peer.daemon.json('run', 'create', join(churn.place.folder, 'spec.toml'))
  churn.run.id = ROUTES.createRun.output.parse(created).id
}

/** Starts one that was killed, or a new one that joins. Never rejects: what goes wrong is a fault of the swarm. */
async function start(churn: Churn): Promise<void> {
  const { random, killed, measures, starting, run } = churn
  const isRestart = killed.length > 0 && random.uniform() < RESTART_WEIGHT
  const [again] = isRestart ? killed.splice(random.integer(killed.length), 1) : []
  const name = again ?? `peer-${churn.fresh++}`
  starting.add(name)
  try {
    if (again !== undefined) measures.begins(name, 'recovering', performance.now())
    const peer = await startDaemon(churn, name)
    if (again === undefined) {
      measures.begins(name, 'joining', performance.now())
      const client = connectDaemon(peer.daemon.dataDir)
      await client.call(ROUTES.joinRun, { run: run.id }, { signal: peer.ending.signal })
    }
  } catch (thrown) {
    measures.ended(name, null, `it did not start: ${messageOf(thrown)}`)
  } finally {
    starting.delete(name)
  }
}

async function startDaemon({ place, up, measures, random }: Churn, name: string): Promise<Peer> {
  const others = [...up.values()]
  const bootstrap = Array.from({ length: Math.min(BOOTSTRAP_PEERS, others.length) }, () => {
    const [other] = others.splice(random.integer(others.length), 1)
    return ['--bootstrap', other?.daemon.ready.addresses[0] ?? '']
  })
  const daemon = await place.daemon(name, ...bootstrap.flat())
  const peer: Peer = { name, daemon, ending: new AbortController() }
  up.set(name, peer)
  void watch(peer, measures)
  void listen(peer, measures)
  return peer
}

async function watch({ name, daemon, ending }: Peer, measures: Measures): Promise<void> {
  const { code, stderr } = await daemon.ended
  if (!ending.signal.aborted) measures.ended(name, code, stderr)
}

async function listen({ name, daemon, ending }: Peer, measures: Measures): Promise<void> {
  const { signal } = ending
  try {
    for await (const event of connectDaemon(daemon.dataDir).events({ signal })) {
      if (signal.aborted) return
      measures.sees(name, event, performance.now())
    }
  } catch (thrown) {
    if (!signal.aborted) measures.ended(name, null, `its events ended: ${messageOf(thrown)}`)
  }
}

async function kill({ up, killed, measures }: Churn, name: string): Promise<void> {
  const peer = up.get(name)
  if (peer === undefined) return
  up.delete(name)
  peer.ending.abort()
  measures.killed(name, performance.now())
  await peer.daemon.end('SIGKILL')
  killed.push(name)
}

/** Waits until all survivors hold the same in some steps in a row; why they do not, otherwise. */
async function settled(
  { up, starting, measures }: Churn,
  signal: AbortSignal,
): Promise<string | undefined> {
  const endsMs = performance.now() + SETTLE_MS
  let last = measures.commonSteps([...up.keys()])
  while (performance.now() < endsMs) {
    await systemClock.sleep(200, signal)
    last = measures.commonSteps([...up.keys()]).slice(0, EQUAL_STEPS)
    const isEqual = last.length === EQUAL_STEPS && last.every((step) => step.isEqual)
    if (starting.size === 0 && isEqual) return undefined
  }
  return `the ${up.size} survivors do not hold the same: ${JSON.stringify(last)}`
}
