/** What a peer gets that asks for holes and reverse dials without need, or for harm. */
import { describe, expect, onTestFinished, test } from 'vitest'
import { createMetrics } from '../../../src/metrics.ts'
import type { Network } from '../../../src/net/network.ts'
import { TOKEN_BYTES } from '../../../src/net/punch-messages.ts'
import type { PunchAttempt, Puncher, PunchOffer } from '../../../src/net/punch.ts'
import { decodeCbor, encodeCbor } from '../../../src/store/content.ts'
import { startMemoryNetwork, startPair } from './memory-network.ts'

const OUTSIDE = { host: '11.0.0.1', port: 7 }
const OFFER: PunchOffer = { outside: OUTSIDE, mapping: 'independent', streamId: 1 }
const token = new Uint8Array(TOKEN_BYTES)

/** Opens nothing; keeps count of what is open. */
function countingPuncher(offer: PunchOffer): { puncher: Puncher; open: Set<PunchAttempt> } {
  const open = new Set<PunchAttempt>()
  const puncher: Puncher = {
    kind: 'udp',
    async prepare() {
      const attempt: PunchAttempt = {
        offer,
        run: async () => await new Promise<never>(() => {}),
        close: () => void open.delete(attempt),
      }
      open.add(attempt)
      return attempt
    },
  }
  return { puncher, open }
}

function ask(from: Network, to: Network, method: string, request: unknown): Promise<Uint8Array> {
  return from.rpc.call(to.peerId, method, encodeCbor(request))
}

describe('a peer that asks', () => {
  test('too often is told to wait, and counted', async () => {
    const metrics = createMetrics()
    const [client, server] = await startPair({ metrics })
    const describeSelf = { addresses: [], hosts: [], kinds: [] }
    const outcomes = await Promise.allSettled(
      Array.from({ length: 20 }, () => ask(client, server, 'path/describe', describeSelf)),
    )
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused.length).toBeGreaterThan(4)
    for (const outcome of refused) {
      expect(outcome).toMatchObject({ reason: { code: 'limit_exceeded' } })
    }
    expect(metrics.read('peer_offences_total', 'flood')).toBe(refused.length)
  })

  test('for a hole to a private address is refused, and nothing stays open', async () => {
    const { puncher, open } = countingPuncher(OFFER)
    const [client, server] = await startPair({ punchers: [puncher] })
    const offer = { ...OFFER, outside: { host: '192.168.1.1', port: 80 } }
    const request = { kind: 'udp', token, offer }
    await expect(ask(client, server, 'path/punch', request)).rejects.toMatchObject({
      code: 'refused',
    })
    expect(open.size).toBe(0)
  })

  test('for one hole after the other has one at a time, and all together a few', async () => {
    const { puncher, open } = countingPuncher(OFFER)
    const server = await startMemoryNetwork({ punchers: [puncher] })
    const [address = ''] = server.addresses()
    const request = { kind: 'udp', token, offer: OFFER }
    const clients = await Promise.all(
      Array.from({ length: 5 }, async () => {
        const client = await startMemoryNetwork()
        await client.connect(address)
        return client
      }),
    )
    const [first, ...others] = clients
    if (first === undefined) throw new Error('no client')
    for (let time = 0; time < 3; time++) {
      const reply = decodeCbor(await ask(first, server, 'path/punch', request), 1000)
      expect(reply).toMatchObject({ offer: OFFER })
    }
    expect(open.size).toBe(1)
    for (const client of others.slice(0, 3)) await ask(client, server, 'path/punch', request)
    const last = others.at(-1)
    if (last === undefined) throw new Error('no client')
    await expect(ask(last, server, 'path/punch', request)).rejects.toMatchObject({
      code: 'limit_exceeded',
    })
    expect(open.size).toBe(4)
    await server.stop()
    expect(open.size).toBe(0)
  })

  test.each<[string, string, unknown, string]>([
    ['for a kind that is not here', 'path/punch', { kind: 'tcp', token, offer: OFFER }, 'refused'],
    ['to go where nothing was prepared', 'path/go', { token }, 'refused'],
    ['with a short token', 'path/go', { token: token.subarray(1) }, 'message_invalid'],
    [
      'for a port that is none',
      'path/punch',
      { kind: 'udp', token, offer: { ...OFFER, outside: { ...OUTSIDE, port: 70_000 } } },
      'message_invalid',
    ],
    [
      'for a host that is a name',
      'path/punch',
      { kind: 'udp', token, offer: { ...OFFER, outside: { host: 'localhost', port: 1 } } },
      'message_invalid',
    ],
    [
      'with too many addresses',
      'path/dial',
      { addresses: Array(17).fill('/ip4/1.2.3.4') },
      'message_invalid',
    ],
  ])('%s is refused', async (_what, method, request, code) => {
    const [client, server] = await startPair({ punchers: [countingPuncher(OFFER).puncher] })
    await expect(ask(client, server, method, request)).rejects.toMatchObject({ code })
  })

  test('to be dialled at addresses of others, or of the LAN, is dialled nowhere', async () => {
    const rejections: unknown[] = []
    const onRejection = (reason: unknown): void => void rejections.push(reason)
    process.on('unhandledRejection', onRejection)
    onTestFinished(() => void process.off('unhandledRejection', onRejection))
    const [client, server] = await startPair()
    const stranger = await startMemoryNetwork()
    const addresses = [
      `/ip4/192.168.1.1/tcp/80/p2p/${client.peerId}`,
      `/ip4/127.0.0.1/tcp/80/p2p/${client.peerId}`,
      `/ip4/11.0.0.1/tcp/80/p2p/${stranger.peerId}`,
      'nonsense',
    ]
    const before = server.links().length
    await ask(client, server, 'path/dial', { addresses })
    expect(server.links()).toHaveLength(before)
    expect(rejections).toEqual([])
  })
})
