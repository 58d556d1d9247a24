/** What people see of the network: a public node, others that come to it by name, links, and the doctor. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { ROUTES } from '../../node/api/routes.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

let place: Workplace
let server: Daemon
let node: Daemon

beforeAll(async () => {
  place = createWorkplace()
  const limits = ['--relay-reservations', '7', '--relay-circuit-megabytes', '3']
  server = await place.daemon('server', '--public', '--no-web-ports', ...limits)
  const [address = ''] = server.ready.addresses
  const port = /\/tcp\/(\d+)/.exec(address)?.[1] ?? ''
  const gone = '/dns4/nowhere.invalid/tcp/4010'
  const named = `/dns4/localhost/tcp/${port}`
  node = await place.daemon('node', '--bootstrap', gone, '--bootstrap', named)
})
afterAll(() => place.close())

async function untilConnected(): Promise<void> {
  for (;;) {
    const { peers } = ROUTES.peers.output.parse(await node.json('peers'))
    if (peers.some(({ peer, rttMs }) => peer === server.ready.peerId && rttMs !== null)) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

test('a bootstrap peer is found by its DNS name, beside one that does not answer', async () => {
  await untilConnected()
  const { peers } = ROUTES.peers.output.parse(await node.json('peers'))
  const link = peers.find(({ peer }) => peer === server.ready.peerId)
  expect(link).toMatchObject({ transport: 'tcp', direct: true, direction: 'outbound' })
  expect(link?.history.at(0)).toMatchObject({ transport: 'tcp', direct: true, closedAgoMs: null })
  const { stdout } = await node.shoal('peers')
  expect(stdout).toMatch(/PATHS/)
  expect(stdout).toContain(server.ready.peerId)
})

test('a public node says what it does for others, and how far it goes', async () => {
  const status = ROUTES.node.output.parse(await server.json('status'))
  expect(status).toMatchObject({
    reachability: 'public',
    relaying: { limits: { reservations: 7, circuitBytes: 3e6 } },
  })
  const { stdout } = await server.shoal('status')
  expect(stdout).toMatch(/reachability +public/)
  expect(stdout).toMatch(/NAT +unknown/)
  expect(stdout).toContain('of 7 peers')
})

test('the doctor measures, and has a sentence for each thing', async () => {
  await untilConnected()
  const diagnosis = ROUTES.diagnose.output.parse(await node.json('doctor'))
  expect(diagnosis).toMatchObject({
    public: false,
    peers: { direct: 1, relayed: 0 },
    clock: { peers: 1 },
    bandwidth: { peer: server.ready.peerId, direct: true, transport: 'tcp' },
  })
  expect(diagnosis.bandwidth?.uploadBytesPerSecond).toBeGreaterThan(0)
  const { stdout, code } = await node.shoal('doctor', '--peer', server.ready.peerId)
  expect(code).toBe(0)
  for (const { subject } of diagnosis.advice) expect(stdout).toContain(` ${subject}: `)
  expect(stdout).toMatch(/^ok +peers: 1 connected directly/m)
  const { stdout: help } = await node.shoal('doctor', '--help')
  expect(help).toContain('--peer <id>')
  expect(help).toContain('shoal doctor --json')
})

test('a node for its LAN is no public one', async () => {
  const outcome = await place.spawned('daemon', '--network', 'lan', '--public')
  expect(outcome).toMatchObject({ code: 2, stdout: '' })
  expect(outcome.stderr).toContain('leave one out')
  const wrong = await place.spawned('daemon', '--network', 'wan')
  expect(wrong.code).toBe(2)
  expect(wrong.stderr).toContain('--network')
})
