import { noise } from '@libp2p/noise'
import { expect, test } from 'vitest'
import { nodeEncrypters } from '../../../../node/net/tls.ts'
import { startHidden, startRelay } from './relay-network.ts'

test.each([
  ['noise', [noise()]],
  ['TLS', nodeEncrypters()],
])('many chunks at once pass a relay whole and in order, under %s', async (_name, encrypters) => {
  const options = { connectionEncrypters: encrypters }
  const relay = await startRelay({}, options)
  const [sink, source] = await startHidden([relay], options)
  source.rpc.handle('test/chunk', async ([index = 0]) => new Uint8Array(1 << 20).fill(index))
  const pull = async (index: number): Promise<void> => {
    const call = sink.rpc.call(source.peerId, 'test/chunk', Uint8Array.of(index), { lane: 'bulk' })
    const chunk = await call
    expect(chunk.length).toBe(1 << 20)
    expect(chunk.every((byte) => byte === index)).toBe(true)
  }
  await Promise.all(Array.from({ length: 24 }, (_, index) => pull(index)))
})
