/** A child process that answers one line of JSON with one line of JSON. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { z } from 'zod'
import { raceSignal, systemClock } from '../../src/clock.ts'
import { messageOf, ShoalError } from '../../src/errors.ts'

export interface JsonProcess {
  /** Sends `request` and parses the answer. Throws `engine_failed` when the process ends instead. */
  ask<T>(request: unknown, answer: z.ZodType<T>, signal: AbortSignal): Promise<T>
  end(): Promise<void>
}

/** The longest that a bench waits for an answer: a round of steps takes seconds. */
const ANSWER_TIMEOUT_MS = 300_000
/** Of what a process wrote to stderr, the end that goes into the fault. */
const STDERR_CHARACTERS = 2000

export function startJsonProcess(
  command: string,
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): JsonProcess {
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, ...environment },
  })
  let complaint = ''
  child.stderr.on('data', (chunk: Buffer) => {
    complaint = (complaint + chunk.toString()).slice(-STDERR_CHARACTERS)
  })
  child.on('error', (error) => {
    complaint = messageOf(error)
  })
  // A write to a process that has ended is reported by its missing answer.
  child.stdin.on('error', () => {})
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()

  return {
    async ask(request, answer, signal) {
      child.stdin.write(`${JSON.stringify(request)}\n`)
      const deadline = systemClock.deadline(ANSWER_TIMEOUT_MS, `an answer of ${command}`, signal)
      const line = await raceSignal(lines.next(), deadline)
      if (line.done !== true) return answer.parse(JSON.parse(line.value))
      await exited
      const reason = complaint.trim().split('\n').at(-1) ?? ''
      throw new ShoalError('engine_failed', `${command} ended without an answer: ${reason}`)
    },
    async end() {
      child.kill('SIGKILL')
      if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
        await once(child, 'close')
      }
    },
  }
}
