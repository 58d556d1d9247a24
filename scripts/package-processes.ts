/** Processes that the test of the package starts, and what they print. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { systemClock, raceSignal } from '../src/clock.ts'

const LINE_MS = 60_000

export interface Started {
  /** The next line of stdout that fits. Throws with the end of stderr when the process ends before, or takes too long. */
  line(pattern: RegExp): Promise<string>
  end(): Promise<void>
}

export function startProcess(
  command: string,
  args: readonly string[],
  cwd: string,
  environment: Readonly<Record<string, string>> = {},
): Started {
  const { PATH } = process.env
  const env = { PATH, HOME: cwd, ...environment }
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let complaint = ''
  child.stderr.on('data', (text) => (complaint = (complaint + String(text)).slice(-2000)))
  const ended = once(child, 'close')
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return {
    async line(pattern) {
      const deadline = systemClock.deadline(LINE_MS, `a line of ${args.join(' ')}`)
      for (;;) {
        const { done, value } = await raceSignal(lines.next(), deadline)
        if (done === true) {
          await ended
          throw new Error(`${command} ${args.join(' ')} has ended: ${complaint}`)
        }
        if (pattern.test(value)) return value
      }
    },
    async end() {
      child.kill('SIGTERM')
      await ended
    },
  }
}

export async function startDaemon(
  node: string,
  program: string,
  dataDir: string,
  cwd: string,
): Promise<Started & { apiUrl: string }> {
  const ports = ['--listen', '/ip4/127.0.0.1/tcp/0', '--api-port', '0', '--no-mdns']
  const args = [program, 'daemon', '--json', '--data-dir', dataDir, '--engine-threads', '1']
  const daemon = startProcess(node, [...args, ...ports], cwd)
  const { apiUrl } = JSON.parse(await daemon.line(/^\{/))
  return { ...daemon, apiUrl }
}
