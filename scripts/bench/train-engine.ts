/** The embedded engine in a process of its own, for `npm run bench -- train`. Speaks as scripts/bench/train.py does. */
import { readFile, writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { createEngine } from '../../node/engine/engine.ts'
import { loadRuntime, vectorBindings } from '../../node/engine/runtime.ts'
import { gptSchema, gradientName, trainingGraph } from '../../src/model/gpt.ts'
import { innerOptimizerSchema, modelSpecSchema } from '../../src/run/manifest.ts'
import { float32Bytes, float32Vector } from '../../src/tensor/float32-bytes.ts'
import { corpusDataset } from './corpus.ts'

const setupSchema = z.object({
  backend: z.enum(['native', 'wasm']),
  threads: z.number(),
  model: modelSpecSchema,
  batchSequences: z.number(),
  inner: innerOptimizerSchema,
  rounds: z.number(),
  stepsPerRound: z.number(),
  stream: z.string(),
  seed: z.string(),
  parameters: z.string(),
  batches: z.string(),
})
type Setup = z.infer<typeof setupSchema>

const requestSchema = z.discriminatedUnion('command', [
  z.object({ command: z.literal('gradient'), path: z.string() }),
  z.object({ command: z.literal('steps'), round: z.number() }),
])

const answer = (fields: Record<string, unknown>): boolean =>
  process.stdout.write(`${JSON.stringify(fields)}\n`)

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  const first = await lines.next()
  const setup = setupSchema.parse(JSON.parse(first.done === true ? '' : first.value))
  const parameters = float32Vector(await readFile(setup.parameters))
  const engine = await createEngine({ backend: setup.backend, threads: setup.threads })
  const trainer = await engine.open(
    {
      model: setup.model,
      batchSequences: setup.batchSequences,
      inner: setup.inner,
      innerSteps: setup.stepsPerRound,
      outerSteps: setup.rounds,
      dataset: await corpusDataset(setup.model.context),
      streams: [setup.stream],
      seed: setup.seed,
    },
    parameters,
  )
  answer({ version: `engine ${engine.backend}` })
  for (;;) {
    const line = await lines.next()
    if (line.done === true) break
    const request = requestSchema.parse(JSON.parse(line.value))
    if (request.command === 'gradient') {
      answer({ loss: await writeGradient(setup, parameters, request.path) })
      continue
    }
    const cpu = process.cpuUsage()
    const startedMs = performance.now()
    const { loss, steps } = await trainer.innerSteps(request.round)
    const wallMs = performance.now() - startedMs
    const { user, system } = process.cpuUsage(cpu)
    const peakBytes = process.resourceUsage().maxRSS * 1024
    answer({
      cpuMs: (user + system) / 1000 / steps,
      wallMs: wallMs / steps,
      loss,
      peakBytes,
    })
  }
  await engine.close()
}

/** Loss and gradient of the first batch, by a session beside the trainer's. */
async function writeGradient(
  { backend, threads, model, batchSequences, batches }: Setup,
  parameters: Float32Array,
  path: string,
): Promise<number> {
  const schema = gptSchema(model)
  const length = batchSequences * model.context
  const file = await readFile(batches)
  const batch = (index: number): Int32Array =>
    Int32Array.from({ length }, (_, i) => file.readInt32LE(4 * (index * length + i)))
  const gradient = new Float32Array(schema.size)
  const loss = new Float32Array(1)
  const runtime = await loadRuntime(backend, { threads, spinning: false })
  const program = await runtime.open(trainingGraph(model, batchSequences))
  await program.bind(
    {
      tokens: { data: batch(0), shape: [length] },
      targets: { data: batch(1), shape: [length] },
      ...vectorBindings(schema, parameters),
    },
    { loss: { data: loss, shape: [] }, ...vectorBindings(schema, gradient, gradientName) },
  )()
  await program.close()
  await writeFile(path, float32Bytes(gradient))
  return loss[0] ?? Number.NaN
}

await main()
