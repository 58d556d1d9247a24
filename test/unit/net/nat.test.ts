import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { silentLogger } from '../../../src/log.ts'
import { createNatWatch } from '../../../src/net/nat.ts'
import { startPair, until } from './memory-network.ts'

test('a neighbour that names ever new hosts takes the place of one reflector', async () => {
  const [client, server] = await startPair({ reflectorPorts: [3478, 3479] })
  const nat = createNatWatch({
    rpc: { ...client.rpc, handle: () => () => {} },
    probe: undefined,
    needsReflectors: true,
    ports: [],
    clock: systemClock,
    logger: silentLogger,
  })
  onTestFinished(() => nat.stop())
  const named = (): string[] => nat.reflectors().map(({ host }) => host)
  for (let time = 0; time < 10; time++) {
    nat.meet(server.peerId, [`198.51.100.${time}`, `2001:db8::${time}`, `203.0.113.${time}`])
    await until(() => named().includes(`198.51.100.${time}`))
  }
  expect(named()).toEqual(['198.51.100.9', '2001:db8::9'])
  expect(nat.reflectors()[0]).toMatchObject({ peer: server.peerId, ports: [3478, 3479] })
})
