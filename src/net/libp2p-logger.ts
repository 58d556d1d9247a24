/** libp2p's own log lines on our logger: errors of its parts at debug, because almost all are another peer's doing. */
import type { ComponentLogger, Logger as Libp2pLogger } from '@libp2p/interface'
import { messageOf } from '../errors.ts'
import type { Logger } from '../log.ts'

/** Scopes below a component (connections, streams) say nothing: they call a normal end of a stream an error. */
export function createLibp2pLogger(logger: Logger): ComponentLogger {
  return {
    forComponent: (component) => {
      const error = (format: unknown, ...args: unknown[]): void => {
        const message = typeof format === 'string' ? format : messageOf(format)
        logger.debug('libp2p_error', { component, message, values: args.slice(0, 8).map(textOf) })
      }
      return Object.assign(silent(), { error })
    },
  }
}

function silent(): Libp2pLogger {
  const log = (): void => {}
  return Object.assign(log, { enabled: false, trace: log, error: log, newScope: silent })
}

function textOf(value: unknown): string {
  return (typeof value === 'string' ? value : messageOf(value)).slice(0, 256)
}
