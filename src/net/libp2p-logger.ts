/** libp2p's own log lines on our logger: errors at debug, because almost all are another peer's doing; the rest nowhere. */
import type { ComponentLogger, Logger as Libp2pLogger } from '@libp2p/interface'
import { messageOf } from '../errors.ts'
import type { Logger } from '../log.ts'

/** A call per stream and per frame: nothing is formatted but errors. */
export function createLibp2pLogger(logger: Logger): ComponentLogger {
  return { forComponent: (name) => scope(name) }

  function scope(name: string): Libp2pLogger {
    const log = (): void => {}
    return Object.assign(log, {
      enabled: false,
      trace: log,
      error: (format: unknown, ...args: unknown[]) => {
        logger.debug('libp2p_error', {
          component: name,
          message: typeof format === 'string' ? format : messageOf(format),
          arguments: args.slice(0, 8).map(textOf),
        })
      },
      newScope: (inner: string) => scope(`${name}:${inner}`),
    })
  }
}

function textOf(argument: unknown): string {
  const text = typeof argument === 'string' ? argument : messageOf(argument)
  return text.slice(0, 256)
}
