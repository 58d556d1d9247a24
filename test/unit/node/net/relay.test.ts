import { describe, expect, test } from 'vitest'
import { natProbe } from '../../../../node/net/nat-probe.ts'
import { udpPuncher } from '../../../../node/net/udp-punch.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import type { Network } from '../../../../src/net/network.ts'
import { createRecorder, until } from '../../net/memory-network.ts'
import { startHidden, startReflector, startRelay } from './relay-network.ts'

const MIB = 1 << 20

function serveEcho(network: Network): void {
  network.rpc.handle('test/echo', async (request) => request)
}

function echo(from: Network, to: Network, bytes: number): Promise<Uint8Array> {
  return from.rpc.call(to.peerId, 'test/echo', new Uint8Array(bytes), { lane: 'bulk' })
}

describe('two that nobody can dial', () => {
  test('find each other through a relay by their ids, and call each other', async () => {
    const relay = await startRelay()
    const [a, b] = await startHidden([relay])
    b.rpc.handle('test/echo', async (request) => request)
    const reply = await a.rpc.call(b.peerId, 'test/echo', Uint8Array.of(1, 2))
    expect(reply).toEqual(Uint8Array.of(1, 2))
    const link = a.links().find(({ peer }) => peer === b.peerId)
    expect(link).toMatchObject({ direct: false, transport: 'p2p-circuit', direction: 'outbound' })
    expect(b.addresses().every((address) => address.includes('/p2p-circuit/p2p/'))).toBe(true)
    expect(relay.relaying()?.use).toMatchObject({ reservations: 2, circuits: 1 })
    await until(() => b.connectedPeers().includes(a.peerId))
  })

  test('take another relay when one goes', async () => {
    const relays = [await startRelay(), await startRelay(), await startRelay()]
    const [a] = await startHidden(relays)
    const [lost] = a.relays()
    await relays.find(({ peerId }) => peerId === lost)?.stop()
    await until(() => a.relays().length === 2 && !a.relays().includes(lost ?? ''))
  })

  test('both see that a transfer was cut at a limit, and may begin another', async () => {
    const metrics = createMetrics()
    const { logger, events } = createRecorder()
    const relay = await startRelay({ circuitBytes: 3 * MIB }, { metrics, logger })
    const [a, b] = await startHidden([relay])
    serveEcho(b)
    const linksOf = (network: Network, other: Network) =>
      network.links().filter(({ peer }) => peer === other.peerId)
    await echo(a, b, MIB)
    expect([linksOf(a, b), linksOf(b, a)].map(({ length }) => length)).toEqual([1, 1])
    await expect(echo(a, b, MIB)).rejects.toMatchObject({ code: 'peer_unreachable' })
    await until(() => linksOf(a, b).length + linksOf(b, a).length === 0)
    expect(metrics.read('relay_circuits_cut_total', 'limit_exceeded')).toBe(1)
    expect(events.find(({ event }) => event === 'circuit_cut')).toMatchObject({
      fields: { from: a.peerId, to: b.peerId },
    })
    expect(await echo(a, b, MIB)).toHaveLength(MIB)
  })

  test('get their share of a relay beside a pair that sends all it can', async () => {
    // Slow enough for the line, not this process, to be what they wait for.
    const relay = await startRelay({ bytesPerSecond: 6 * MIB })
    const pairs = await Promise.all([startHidden([relay]), startHidden([relay])])
    const [[greedy, sink], [modest, other]] = pairs
    for (const network of [sink, other])
      network.rpc.handle('test/sink', async () => Uint8Array.of())
    const give = (from: Network, to: Network): Promise<unknown> =>
      from.rpc.call(to.peerId, 'test/sink', new Uint8Array(MIB), { lane: 'bulk' })
    let given = 0
    const stopping = new AbortController()
    const flood = async (): Promise<void> => {
      while (!stopping.signal.aborted) {
        await give(greedy, sink)
        given++
      }
    }
    const floods = Promise.all(Array.from({ length: 4 }, flood))
    const asking = async (): Promise<number> => {
      await until(() => given >= 2)
      const before = given
      for (let time = 0; time < 3; time++) await give(modest, other)
      return given - before
    }
    const [meanwhile] = await Promise.all([asking().finally(() => stopping.abort()), floods])
    // As much as it got itself, and what was under way; four at once would get four times that.
    expect(meanwhile).toBeLessThan(10)
  })
})

/** TCP takes a lab: on loopback there is no time in which both sides could be on their way. */
test('a hole for UDP takes the place of the relay under calls', async () => {
  const relay = await startRelay({}, { reflectorPorts: await startReflector() })
  const [a, b] = await startHidden([relay], { punchers: [udpPuncher()], natProbe: natProbe() })
  serveEcho(b)
  const isDirect = (): boolean =>
    a.links().some((link) => link.peer === b.peerId && link.transport === 'udx')
  let calls = 0
  while (!isDirect()) {
    await echo(a, b, 1000)
    calls++
  }
  expect(calls).toBeGreaterThan(0)
  // Until the relay is free again.
  await until(() => a.links().every(({ direct }) => direct))
  expect(await echo(a, b, MIB)).toHaveLength(MIB)
  const link = a.links().find(({ peer }) => peer === b.peerId)
  expect(link?.history.map(({ direct }) => direct)).toEqual([false, true])
  expect(link?.history[0]?.closedAgoMs).not.toBe(null)
  expect(b.reachability()).not.toBe('public')
})
