import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { Clock } from '../../../src/clock.ts'
import { systemClock } from '../../../src/clock.ts'
import { createMetrics } from '../../../src/metrics.ts'
import { createGate } from '../../../src/net/gate.ts'
import { createOffences } from '../../../src/net/offences.ts'
import type { Offences } from '../../../src/net/offences.ts'
import { createIdentity } from '../../../src/net/identity.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { addressOf, createRecorder, startMemoryNetwork, until } from './memory-network.ts'

function createAccounts() {
  let nowMs = 0
  const clock: Clock = { ...systemClock, now: () => nowMs }
  const { logger, events } = createRecorder()
  const metrics = createMetrics()
  const sent: string[] = []
  const offences: Offences = createOffences({
    clock,
    logger,
    metrics,
    sendAway: (peer) => sent.push(peer),
  })
  return { offences, metrics, events, sent, pass: (ms: number) => (nowMs += ms) }
}

describe('a peer that breaks the rules', () => {
  test('is counted, told of, and sent away after some times', () => {
    const { offences, metrics, events, sent } = createAccounts()
    for (let time = 1; time <= 4; time++) {
      expect(offences.isBanned('p')).toBe(false)
      offences.note('p', 'malformed', 'no frame')
    }
    expect(offences.isBanned('p')).toBe(true)
    expect(offences.isBanned('other')).toBe(false)
    expect(sent).toEqual(['p'])
    expect(metrics.read('peer_offences_total', 'malformed')).toBe(4)
    expect(metrics.read('peers_banned_total', 'malformed')).toBe(1)
    expect(events.filter(({ event }) => event === 'peer_offended')).toHaveLength(4)
    expect(events.at(-1)).toMatchObject({
      level: 'warn',
      event: 'peer_banned',
      fields: { peer: 'p', offence: 'malformed' },
    })
  })

  test('does not fill the log', () => {
    const { offences, events } = createAccounts()
    for (let time = 0; time < 1000; time++) offences.note('p', 'flood', 'again')
    expect(events.length).toBeLessThan(8)
  })

  test('is let in again after a while, and forgiven what an honest one may do', () => {
    const { offences, pass, sent } = createAccounts()
    for (let time = 0; time < 25; time++) offences.note('p', 'stalled', 'silence')
    expect(offences.isBanned('p')).toBe(true)
    pass(600_000)
    expect(offences.isBanned('p')).toBe(false)
    // A line that breaks twice a minute, for a day.
    for (let minute = 0; minute < 24 * 60; minute++) {
      offences.note('q', 'stalled', 'silence')
      offences.note('q', 'not_reading', 'silence')
      pass(60_000)
    }
    expect(sent).toEqual(['p'])
  })

  test('cannot make this node remember without bound, nor forget those of late', () => {
    const { offences } = createAccounts()
    for (let time = 0; time < 3; time++) offences.note('first', 'malformed', 'x')
    for (let index = 0; index < 5000; index++) offences.note(`p${index}`, 'flood', 'x')
    offences.note('first', 'malformed', 'x')
    expect(offences.isBanned('first')).toBe(false)
  })
})

describe('the gate', () => {
  const offences = { isBanned: (peer: string): boolean => peer.endsWith('x') }

  test('of a node for its LAN opens to the LAN only', async () => {
    const { peerId } = await createIdentity()
    const gate = createGate({ offences, isLanOnly: true })
    const denied = [
      '/ip4/11.0.0.1/tcp/4010',
      '/dns4/example.org/tcp/4010',
      `/ip4/192.168.1.2/tcp/4010/p2p/${peerId}/p2p-circuit`,
    ]
    const allowed = ['/ip4/192.168.1.2/tcp/4010', '/ip4/127.0.0.1/tcp/1', '/memory/x']
    const isDenied = (text: string): unknown => gate.denyDialMultiaddr?.(multiaddr(text))
    expect(denied.map(isDenied)).toEqual([true, true, true])
    expect(allowed.map(isDenied)).toEqual([false, false, false])
    const open = createGate({ offences, isLanOnly: false })
    for (const text of denied) expect(open.denyDialMultiaddr?.(multiaddr(text))).toBe(false)
  })

  test('is closed to those that were sent away, whoever dials', async () => {
    const banned = await startMemoryNetwork()
    const gate = createGate({
      offences: { isBanned: (peer) => peer === banned.peerId },
      isLanOnly: false,
    })
    const id = peerIdFromString(banned.peerId)
    expect(await gate.denyDialPeer?.(id)).toBe(true)
  })
})

test('a peer that floods with requests is counted, and sent away in the end', async () => {
  const rejections: unknown[] = []
  const onRejection = (reason: unknown): void => void rejections.push(reason)
  process.on('unhandledRejection', onRejection)
  onTestFinished(() => void process.off('unhandledRejection', onRejection))
  const metrics = createMetrics()
  const victim = await startMemoryNetwork({ metrics })
  const flooder = await startMemoryNetwork()
  await flooder.connect(addressOf(victim))
  await until(() => victim.connectedPeers().length === 1)
  const request = encodeCbor({ addresses: [], hosts: [], kinds: [] })
  const ask = (): Promise<unknown> =>
    flooder.rpc.call(victim.peerId, 'path/describe', request).catch((thrown: unknown) => thrown)
  let asked = 0
  while (metrics.read('peers_banned_total') === 0 && asked < 200) {
    await ask()
    asked++
  }
  expect(asked).toBeGreaterThan(90)
  expect(metrics.read('peer_offences_total', 'flood')).toBeGreaterThanOrEqual(90)
  await until(() => victim.links().length === 0)
  expect(metrics.read('peers_banned_total')).toBe(1)
  expect(await ask()).toMatchObject({ code: 'peer_unreachable' })
  await expect(victim.connect(addressOf(flooder))).rejects.toMatchObject({
    code: 'peer_unreachable',
  })
  const honest = await startMemoryNetwork()
  await honest.connect(addressOf(victim))
  await until(() => victim.connectedPeers().length === 1)
  expect(rejections).toEqual([])
})
