import { describe, expect, test } from 'vitest'
import { until } from '../../net/memory-network.ts'
import { startHidden, startRelay } from './relay-network.ts'

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
})
