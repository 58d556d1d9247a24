/**
 * A trainer whose every result is known in advance: an outer step adds a constant to all parameters, and what two peers
 * agree on is the mean of their constants. Had one round of one peer been lost, or counted twice, the sums would tell.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ApiClient } from '../../node/api/client.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { systemClock } from '../../src/clock.ts'
import { messageOf } from '../../src/errors.ts'
import { runSpecSchema } from '../../src/run/manifest.ts'
import { readSafetensors, writeSafetensors } from '../../src/tensor/safetensors.ts'
import { createSchema } from '../../src/tensor/schema.ts'

/** 64 KiB. */
const SCHEMA = createSchema([{ name: 'line', shape: [128, 128], decay: false }])
/** The time that inner steps take. */
const WORK_MS = 250
const PEERS = 2
const LOOK_MS = 50

export interface TrainedRound {
  outerStep: number
  outcome: string
  /** From the end of the last round to the end of this one. */
  tookMs: number
  /** `performance.timeOrigin`-based, at its end. */
  endedAtMs: number
}

export interface Trainer {
  report(): { rounds: TrainedRound[]; value: number; fault: string | null }
}

/** Creates a run that averages exactly. Returns its id and the link for others. */
export async function createLineRun(
  api: ApiClient,
  folder: string,
  roundTimeoutMs: number,
): Promise<{ id: string; link: string }> {
  const start = join(folder, 'line.safetensors')
  mkdirSync(folder, { recursive: true })
  writeFileSync(start, await fileOf(new Float32Array(SCHEMA.size)))
  const spec = runSpecSchema.parse({
    name: 'line',
    model: { kind: 'external' },
    from: start,
    innerSteps: 4,
    outerSteps: 100_000,
    averaging: { rule: 'diloco', learningRate: 1, momentum: 0, pseudoGradientCodec: 'fp32' },
    limits: { minPeers: 2, startTimeoutMs: 60_000, roundTimeoutMs },
  })
  const { id } = await api.call(ROUTES.createRun, { spec })
  const { link } = await api.call(ROUTES.invite, { run: id })
  return { id, link }
}

/** Trains until the signal fires. */
export function startTrainer(
  api: ApiClient,
  run: string,
  step: number,
  signal: AbortSignal,
): Trainer {
  const rounds: TrainedRound[] = []
  let value = Number.NaN
  let fault: string | null = null

  async function train(): Promise<void> {
    const begun = await api.download(ROUTES.parameters, { run }, { signal })
    let parameters = await readSafetensors(begun.content ?? new ReadableStream(), SCHEMA)
    let outerStep = begun.output?.outerStep ?? 0
    await untilAllTrain(api, run, signal)
    let startedMs = performance.now()
    for (;;) {
      await api.call(ROUTES.progress, { run, innerStep: 1 }, { signal })
      await systemClock.sleep(WORK_MS, signal)
      const body = await fileOf(parameters.map((element) => element + step))
      const input = { run, outerStep, tokens: 1, loss: 1 }
      const { output, content } = await api.download(ROUTES.outerStep, input, { body, signal })
      parameters = await readSafetensors(content ?? new ReadableStream(), SCHEMA)
      if (output === undefined) throw new Error('no outer step')
      const now = performance.now()
      const endedAtMs = performance.timeOrigin + now
      const { outcome } = output
      rounds.push({ outerStep, outcome, tookMs: now - startedMs, endedAtMs })
      startedMs = now
      outerStep = output.nextOuterStep
      const [first = Number.NaN] = parameters
      value = parameters.every((element) => element === first) ? first : Number.NaN
    }
  }

  train().catch((thrown: unknown) => {
    fault = messageOf(thrown)
  })
  return { report: () => ({ rounds, value, fault }) }
}

/** Before a trainer is heard its peer is silent, and nobody counts on it. */
async function untilAllTrain(api: ApiClient, run: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    const { members } = await api.call(ROUTES.showRun, { run }, { signal })
    if (members.length === PEERS && members.every(({ status }) => status === 'training')) return
    await systemClock.sleep(LOOK_MS, signal)
  }
}

async function fileOf(parameters: Float32Array): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  for await (const piece of writeSafetensors(SCHEMA, parameters).content) pieces.push(piece)
  return Buffer.concat(pieces)
}
