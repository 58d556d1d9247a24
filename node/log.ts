/** The `Logger` port on pino: NDJSON on stderr, or coloured lines on a terminal. */
import type { Writable } from 'node:stream'
import { pino } from 'pino'
import type { Logger as Pino } from 'pino'
import { PinoPretty as pretty } from 'pino-pretty'
import type { Logger } from '../src/log.ts'
import type { Config } from './config.ts'

export interface LogOptions {
  level: Config['log']['level']
  format: Config['log']['format']
  /** Where entries go; default stderr. */
  destination?: Writable
}

/** Entries are written synchronously, so that none is lost when the process ends. */
export function createLogger(options: LogOptions): Logger {
  const usePretty =
    options.format === 'pretty' || (options.format === 'auto' && process.stderr.isTTY)
  const destination = options.destination ?? pino.destination({ fd: 2, sync: true })
  const stream = usePretty
    ? pretty({
        destination,
        colorize: process.stderr.isTTY && process.env['NO_COLOR'] === undefined,
        sync: true,
        messageKey: 'event',
        translateTime: 'SYS:HH:MM:ss',
        singleLine: true,
      })
    : destination
  return adapt(
    pino(
      {
        level: options.level,
        base: null,
        messageKey: 'event',
        timestamp: pino.stdTimeFunctions.isoTime,
        formatters: { level: (label) => ({ level: label }) },
        serializers: { error: pino.stdSerializers.err },
        errorKey: 'error',
      },
      stream,
    ),
  )
}

function adapt(log: Pino): Logger {
  return {
    debug: (event, fields) => log.debug(fields ?? {}, event),
    info: (event, fields) => log.info(fields ?? {}, event),
    warn: (event, fields) => log.warn(fields ?? {}, event),
    error: (event, fields) => log.error(fields ?? {}, event),
    child: (fields) => adapt(log.child(fields)),
  }
}
