/**
 * The event log of a run as text: one JSON object per line, a header first.
 *
 * Written by the local API, read by `shoal run replay`; a later version of the form gets another number.
 */
import { createReadStream } from 'node:fs'
import { z } from 'zod'
import { ShoalError, messageOf } from '../src/errors.ts'
import { loggedEventSchema, type LoggedEvent } from '../src/run/event-log.ts'
import type { RunView } from '../src/run/view.ts'

const headerSchema = z.object({
  format: z.literal('shoal-events'),
  version: z.literal(1),
  run: z.string(),
  name: z.string(),
  parameters: z.number(),
  outerSteps: z.number(),
  innerSteps: z.number(),
  rule: z.string(),
})
type EventLogHeader = z.infer<typeof headerSchema>

/** One event is < 4 KiB: its longest field is a list of 32 partners. */
const LINE_CHARACTERS_MAX = 64 << 10
/** Lines that are sent together. */
const LINES_TOGETHER = 100

export async function* eventLogLines(
  view: RunView,
  events: AsyncIterable<LoggedEvent>,
): AsyncGenerator<Uint8Array, void> {
  const encoder = new TextEncoder()
  const { id: run, name, parameters, outerSteps, innerSteps, rule } = view
  const facts = { run, name, parameters, outerSteps, innerSteps, rule }
  const header: EventLogHeader = { format: 'shoal-events', version: 1, ...facts }
  let lines = [JSON.stringify(header)]
  const flush = (): Uint8Array => {
    const text = lines.map((line) => `${line}\n`).join('')
    lines = []
    return encoder.encode(text)
  }
  for await (const logged of events) {
    lines.push(JSON.stringify(logged))
    if (lines.length >= LINES_TOGETHER) yield flush()
  }
  if (lines.length > 0) yield flush()
}

export interface EventLogFile {
  header: EventLogHeader
  /** Oldest first. */
  events: LoggedEvent[]
}

/** Throws `usage` for a file that cannot be read or is no event log. */
export async function readEventLog(path: string): Promise<EventLogFile> {
  try {
    return await readEventLogText(createReadStream(path), path)
  } catch (cause) {
    throw cause instanceof ShoalError ? cause : notALog(path, messageOf(cause), cause)
  }
}

/** Events of newer versions are passed over. Throws `usage` when it is no event log; `name` is what to call it. */
export async function readEventLogText(
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  name = 'the answer',
): Promise<EventLogFile> {
  let header: EventLogHeader | undefined
  const events: LoggedEvent[] = []
  let number = 0
  for await (const line of linesOf(content, name)) {
    const value = parseLine(line, name, ++number)
    if (header === undefined) header = parseHeader(value, name)
    else {
      const logged = loggedEventSchema.safeParse(value)
      if (logged.success) events.push(logged.data)
    }
  }
  if (header === undefined) throw notALog(name, 'it is empty')
  return { header, events }
}

async function* linesOf(
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  name: string,
): AsyncGenerator<string, void> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const piece of content) {
    text += decoder.decode(piece, { stream: true })
    const lines = text.split('\n')
    text = lines.pop() ?? ''
    if (text.length > LINE_CHARACTERS_MAX) throw notALog(name, 'a line is too long')
    yield* lines
  }
  if (text !== '') yield text
}

function parseLine(line: string, path: string, number: number): unknown {
  try {
    return JSON.parse(line)
  } catch (cause) {
    throw notALog(path, `line ${number} is not JSON`, cause)
  }
}

function parseHeader(value: unknown, path: string): EventLogHeader {
  const header = headerSchema.safeParse(value)
  if (header.success) return header.data
  throw notALog(path, 'its first line is not the header of one that this version knows')
}

function notALog(path: string, why: string, cause?: unknown): ShoalError {
  const remedy = 'name a file that `shoal run events --export` made'
  return new ShoalError('usage', `${path} is no event log (${why}): ${remedy}`, { cause })
}
