import { Writable } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { createLogger } from '../../../node/log.ts'
import type { LogOptions } from '../../../node/log.ts'
import type { Logger } from '../../../src/log.ts'

function record(options: Pick<LogOptions, 'level' | 'format'>): {
  logger: Logger
  text: () => string
} {
  let text = ''
  const destination = new Writable({
    write(line, _, done) {
      text += String(line)
      done()
    },
  })
  return { logger: createLogger({ ...options, destination }), text: () => text }
}

describe('the log', () => {
  test('is one JSON object per line: level, time, event and fields', () => {
    const { logger, text } = record({ level: 'info', format: 'json' })
    logger.info('run_started', { run: 'bafy', peers: 2 })
    logger.child({ scope: 'net' }).warn('dial_failed')
    const [first, second] = text()
      .trim()
      .split('\n')
      .map((line): unknown => JSON.parse(line))
    const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/)
    expect(first).toEqual({ level: 'info', time, event: 'run_started', run: 'bafy', peers: 2 })
    expect(second).toEqual({ level: 'warn', time, event: 'dial_failed', scope: 'net' })
  })

  test('carries the stack of an error', () => {
    const { logger, text } = record({ level: 'error', format: 'json' })
    logger.error('crash', { error: new TypeError('boom') })
    const { error } = JSON.parse(text())
    expect(error).toMatchObject({ type: 'TypeError', message: 'boom' })
    expect(error.stack).toContain('log.test.ts')
  })

  test('leaves out what is below its level', () => {
    const { logger, text } = record({ level: 'warn', format: 'json' })
    logger.debug('a')
    logger.info('b')
    logger.warn('c')
    expect(text().trim().split('\n')).toHaveLength(1)
    const silent = record({ level: 'silent', format: 'json' })
    silent.logger.error('d')
    expect(silent.text()).toBe('')
  })

  test('is for people where that is asked for', () => {
    const { logger, text } = record({ level: 'info', format: 'pretty' })
    logger.info('run_started', { run: 'bafy' })
    expect(text()).toMatch(/INFO.*run_started.*bafy/)
    expect(text()).not.toContain('"level"')
  })
})
