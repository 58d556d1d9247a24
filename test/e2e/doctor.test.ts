/** The doctor beside a peer that never answers: the command ends when it is told to, and says why in one line. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { runProgram } from '../../node/cli/program.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { ShoalError } from '../../src/errors.ts'
import { startSilentPeer } from '../silent-peer.ts'
import type { SilentPeer } from '../silent-peer.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

let place: Workplace
let node: Daemon
let silent: SilentPeer

beforeAll(async () => {
  place = createWorkplace()
  node = await place.daemon('node')
  silent = await startSilentPeer()
  await silent.dial(node.ready.addresses[0] ?? '')
  for (;;) {
    const { peers } = ROUTES.peers.output.parse(await node.json('peers'))
    if (peers.some(({ peer }) => peer === silent.peerId)) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
})
afterAll(async () => {
  await silent.stop()
  await place.close()
})

/** The doctor has begun, and waits for the peer. */
async function untilAsked(): Promise<void> {
  const before = clockQuestions()
  while (clockQuestions() === before) await new Promise((resolve) => setTimeout(resolve, 20))
}

function clockQuestions(): number {
  return silent.asked.filter((method) => method === 'net/clock').length
}

test.each(['SIGINT', 'SIGTERM'] as const)('ends at once at %s, without a word', async (signal) => {
  const command = node.started('doctor', '--peer', silent.peerId)
  await untilAsked()
  command.kill(signal)
  // Its own deadline is a minute away.
  expect(await command.outcome).toEqual({ code: 130, stdout: '', stderr: '' })
})

test('with --json says that it was interrupted, in one line', async () => {
  const command = node.started('doctor', '--json')
  await untilAsked()
  command.kill('SIGINT')
  const { code, stdout, stderr } = await command.outcome
  expect({ code, stdout }).toEqual({ code: 130, stdout: '' })
  expect(stderr.trim().split('\n')).toHaveLength(1)
  expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'aborted' } })
})

test('at a deadline names it, in one line', async () => {
  const deadline = new AbortController()
  let [stdout, stderr] = ['', '']
  const command = runProgram(['doctor', '--data-dir', node.dataDir], {
    stdout: { write: (text) => (stdout += text) },
    stderr: { write: (text) => (stderr += text) },
    env: {},
    cwd: place.folder,
    signal: deadline.signal,
  })
  await untilAsked()
  deadline.abort(new ShoalError('timeout', 'shoal doctor took longer than 7 ms'))
  expect(await command).toBe(1)
  expect({ stdout, stderr }).toEqual({
    stdout: '',
    stderr: 'error: shoal doctor took longer than 7 ms\n',
  })
})

test('leaves a daemon that goes on', async () => {
  const { code } = await node.shoal('status')
  expect(code).toBe(0)
  const outcome = await node.end()
  expect(outcome.code).toBe(0)
  expect(outcome.stderr).not.toMatch(/"level":"(error|fatal)"/)
})
