/**
 * The events of each run, kept over restarts: what its course is shown and replayed from.
 *
 * One record per event, numbered per run; the newest `LIMITS.loggedEvents` of a run are kept. Events of inner steps are
 * left out: an outer step tells what came of them. A step whose commit was lost in a crash is there twice, the later one
 * being what happened. A log that cannot be written costs its events and nothing else.
 */
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { RecordOperation, RecordStore } from '../store/record-store.ts'
import { runEventSchema, type RunEvent } from './view.ts'

export const loggedEventSchema = z.object({
  /** Counts up from 1 in each run. */
  number: z.number().int().min(1),
  /** Milliseconds since 1970 by this node's clock, for people. */
  timeMs: z.number(),
  event: runEventSchema,
})
/** An event of a run with its number and time. */
export type LoggedEvent = z.infer<typeof loggedEventSchema>

export interface EventLog {
  /** Stores the event in its turn. */
  append(event: RunEvent): void
  /** Events after number `after`, oldest first, those appended meanwhile included. */
  read(run: string, after?: number): AsyncGenerator<LoggedEvent, void>
  /** Deletes all of a run. */
  forget(run: string): Promise<void>
  /** Resolves when all that was appended is stored. */
  close(): Promise<void>
}

export interface EventLogOptions {
  records: RecordStore
  clock: Clock
  logger: Logger
  /** Events of a run that are kept; default `LIMITS.loggedEvents`. */
  size?: number
  /** Milliseconds since 1970; default the system's. */
  wallMs?: () => number
}

/** Numbers of the oldest event kept, and of the next. */
const headSchema = z.object({ oldest: z.number().int().min(1), next: z.number().int().min(1) })
type Head = z.infer<typeof headSchema>

/** Numbers in keys have so many digits, so that the order of keys is theirs. */
const DIGITS = 12
/** Events that share all digits but so many of the last are read at once. */
const PAGE_DIGITS = 2
/** Events that wait to be stored: more than that is a disk that does not answer. */
const PENDING_MAX = 1024

export function createEventLog(options: EventLogOptions): EventLog {
  const { records, clock, logger, size = LIMITS.loggedEvents, wallMs = Date.now } = options
  const heads = new Map<string, Head>()
  let pending: Omit<LoggedEvent, 'number'>[] = []
  let dropped = 0
  let work: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(task: () => Promise<T>): Promise<T> => {
    const result = work.then(task)
    work = result.catch(() => {})
    return result
  }
  const storePending = async (): Promise<void> => {
    const events = pending
    pending = []
    if (dropped > 0) logger.warn('events_not_logged', { events: dropped, reason: 'slow disk' })
    dropped = 0
    try {
      for (const [run, ofRun] of Map.groupBy(events, ({ event }) => event.run)) {
        const head = heads.get(run) ?? (await readHead(records, run))
        const next = await store(records, run, head, ofRun, size)
        heads.set(run, next)
      }
    } catch (thrown) {
      logger.warn('events_not_logged', { events: events.length, reason: messageOf(thrown) })
    }
  }
  return {
    append(event) {
      if (event.type === 'inner_progress') return
      if (pending.length >= PENDING_MAX) dropped++
      else pending.push({ timeMs: wallMs(), event })
      if (pending.length === 1) void inTurn(storePending)
    },
    async *read(run, after = 0) {
      await inTurn(async () => {})
      const { oldest, next } = heads.get(run) ?? (await readHead(records, run))
      const page = 10 ** PAGE_DIGITS
      for (let first = Math.max(oldest, after + 1); first < next; first += page - (first % page)) {
        const prefix = eventKey(run, first).slice(0, -PAGE_DIGITS)
        for (const [, bytes] of await records.list(prefix)) {
          const logged = parse(bytes, loggedEventSchema)
          if (logged !== undefined && logged.number > after) yield logged
        }
        // A long log must not keep the node from answering its peers.
        await clock.sleep(0)
      }
    },
    forget: (run) =>
      inTurn(async () => {
        heads.delete(run)
        const found = await records.list(keyPrefix(run))
        await records.batch(found.map(([key]) => ({ delete: key })))
      }),
    close: () => inTurn(async () => {}),
  }
}

const keyPrefix = (run: string): string => `events/${run}/`
const headKey = (run: string): string => `${keyPrefix(run)}head`
const eventKey = (run: string, number: number): string =>
  keyPrefix(run) + String(number).padStart(DIGITS, '0')

async function readHead(records: RecordStore, run: string): Promise<Head> {
  const bytes = await records.get(headKey(run))
  return (bytes && parse(bytes, headSchema)) ?? { oldest: 1, next: 1 }
}

async function store(
  records: RecordStore,
  run: string,
  { oldest, next }: Head,
  events: readonly Omit<LoggedEvent, 'number'>[],
  size: number,
): Promise<Head> {
  const head = { next: next + events.length, oldest: Math.max(oldest, next + events.length - size) }
  const gone = Array.from({ length: Math.min(head.oldest, next) - oldest }, (_, i) => oldest + i)
  const operations: RecordOperation[] = [
    // Of more events than are kept, as after a long wait for the disk, only the newest.
    ...numbered(events, next)
      .filter(({ number }) => number >= head.oldest)
      .map((logged) => ({ put: eventKey(run, logged.number), value: encode(logged) })),
    ...gone.map((number) => ({ delete: eventKey(run, number) })),
    { put: headKey(run), value: encode(head) },
  ]
  await records.batch(operations)
  return head
}

function numbered(events: readonly Omit<LoggedEvent, 'number'>[], first: number): LoggedEvent[] {
  return events.map((logged, index) => ({ number: first + index, ...logged }))
}

/** JSON, so that other programs can read the database. */
function encode(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value))
}

/** Undefined for what another version wrote, or what is damaged. */
function parse<T>(bytes: Uint8Array, schema: z.ZodType<T>): T | undefined {
  try {
    return schema.safeParse(JSON.parse(new TextDecoder().decode(bytes))).data
  } catch {
    return undefined
  }
}
