/** An exported model in the hands of Hugging Face's transformers: the same text as from `shoal sample`. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { writeCheckpointFolder } from '../../node/api/checkpoint-folder.ts'
import { runProgram } from '../../node/cli/program.ts'
import { initialParameters } from '../../src/model/initial-parameters.ts'
import { exportModel } from '../../src/run/exported-model.ts'
import { freshModel, manifestSchema, runSpecSchema } from '../../src/run/manifest.ts'
import { findPython, pythonNote, runPython } from './python.ts'

const python = findPython('torch', 'transformers')
const folder = mkdtempSync(join(tmpdir(), 'shoal-pretrained-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function exported(activation: 'gelu' | 'relu-squared'): Promise<string> {
  const model = { layers: 2, heads: 2, embedding: 32, context: 16, activation }
  const spec = runSpecSchema.parse({ data: 'x', name: activation, model })
  const vocabulary = ['\n', ' ', ...Array.from('abcdefghijklmnopqrstuvwxyz'), 'é', '鯨']
  const manifest = manifestSchema.parse({
    version: 1,
    name: spec.name,
    public: false,
    model: freshModel(spec, vocabulary.length),
    schemaHash: 'a'.repeat(64),
    initial: { bytes: 0, chunks: [] },
    data: { tokenizer: { kind: 'char', vocabulary }, text: null, validationFraction: 0.05 },
    batchSequences: 1,
    innerSteps: 1,
    outerSteps: 1,
    inner: spec.inner,
    averaging: spec.averaging,
    limits: spec.limits,
    admins: [],
    seed: 'seed',
  })
  if (manifest.model.kind !== 'gpt') throw new Error('not a gpt')
  // Far from the initial weights, so that what follows a prompt depends on all of them.
  const parameters = initialParameters(manifest.model, 'seed').map(
    (value, index) => value + 0.1 * Math.sin(7.3 * index),
  )
  const place = join(folder, activation)
  const from = { run: 'run', checkpoint: 'checkpoint', outerStep: 1 }
  await writeCheckpointFolder(place, exportModel(manifest, parameters, from))
  return place
}

async function sampled(place: string, prompt: string, count: number): Promise<string> {
  let stdout = ''
  const options = ['--tokens', String(count), '--temperature', '0']
  await runProgram(['sample', place, '--prompt', prompt, ...options], {
    stdout: { write: (text) => (stdout += text) },
    stderr: process.stderr,
    env: {},
    cwd: folder,
    signal: new AbortController().signal,
  })
  return stdout
}

test.skipIf(python === undefined).each(['gelu', 'relu-squared'] as const)(
  `from_pretrained continues a text alike (${pythonNote(python, 'torch and transformers')}): %s`,
  async (activation) => {
    const place = await exported(activation)
    const prompt = 'call me 鯨'
    // Within one context: beyond it the two slide over the text in different ways.
    const continued = await sampled(place, prompt, 7)
    expect(continued.length).toBeGreaterThan(prompt.length)
    const script = runPython(python ?? '', ['test/python/pretrained.py', place, prompt, '7'])
    expect(await script.ended).toBe(0)
    expect(script.output()).toContain(`GPT2LMHeadModel\n${continued}`)
  },
)
