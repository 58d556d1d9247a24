/** `shoal sample`: text from an exported model; needs no daemon. */
import { resolve } from 'node:path'
import { LIMITS } from '../../src/limits.ts'
import type { Command } from './session.ts'

const DEFAULT_TOKENS = 200
const DEFAULT_TEMPERATURE = 0.8

export const SAMPLE_COMMAND: Command = {
  name: 'sample',
  arguments: '<folder>',
  summary: 'continue a text with an exported model (needs no daemon)',
  examples: [
    'sample my-model --prompt "Call me "',
    'sample my-model --prompt "The whale" --tokens 500 --temperature 0.7 --top-k 20 --seed 1',
  ],
  options: [
    { flags: '--prompt <text>', summary: 'text to continue', mandatory: true },
    {
      flags: '--tokens <number>',
      summary: `how many tokens to generate (default ${DEFAULT_TOKENS})`,
    },
    {
      flags: '--temperature <number>',
      summary: `0 takes the likeliest token, 1 the model's own odds (default ${DEFAULT_TEMPERATURE})`,
    },
    { flags: '--top-k <number>', summary: 'choose among so many likeliest tokens (default all)' },
    { flags: '--seed <text>', summary: 'the same seed gives the same text (default: another)' },
  ],
  async run(session) {
    const count =
      session.number('tokens', { min: 1, max: LIMITS.sampleTokens, whole: true }) ?? DEFAULT_TOKENS
    const temperature = session.number('temperature', { min: 0, max: 10 }) ?? DEFAULT_TEMPERATURE
    const topK = session.number('topK', { min: 0, max: LIMITS.vocabularySize, whole: true }) ?? 0
    const prompt = session.text('prompt') ?? ''
    const seed = session.text('seed') ?? crypto.randomUUID()
    const { cwd, signal } = session.terminal
    // Loaded only here: no other command needs the engine in this process.
    const { readModelFolder } = await import('./model-folder.ts')
    const { generateText } = await import('../engine/text-generation.ts')
    const folder = await readModelFolder(resolve(cwd, session.argument(0) ?? ''))
    const tokens = await generateText({
      spec: folder.model,
      parameters: folder.parameters,
      prompt: folder.tokenizer.encode(prompt),
      count,
      seed,
      temperature,
      topK,
      signal,
    })
    const text = folder.tokenizer.decode(tokens)
    session.emit({ prompt, text, tokens: tokens.length, seed }, () => [`${prompt}${text}`])
  },
}
