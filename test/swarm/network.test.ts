/** Strangers that know one bootstrap address find one another, in one process on the in-memory transport. */
import type { CID } from 'multiformats/cid'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import type { Clock } from '../../src/clock.ts'
import { createIdentity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import { cidOf } from '../../src/store/content.ts'
import { createMemoryRecordStore } from '../../src/store/memory.ts'
import {
  addressOf,
  createRecorder,
  freshAddress,
  startMemoryNetwork,
  until,
} from '../unit/net/memory-network.ts'

async function cidNumber(number: number): Promise<CID> {
  return cidOf(new TextEncoder().encode(`cid ${number}`), 'raw')
}

async function find(network: Network, cid: CID): Promise<string[]> {
  const peers: string[] = []
  for await (const peer of network.discovery.find(cid)) peers.push(peer)
  return peers.sort()
}

/** Looks again until it finds `count`: an announcement takes a moment. */
async function findAll(network: Network, cid: CID, count: number): Promise<string[]> {
  for (;;) {
    const peers = await find(network, cid)
    if (peers.length >= count) return peers
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** Time passes faster by `factor`: minutes of a schedule in a test of seconds. */
function fastClock(factor: number): Clock {
  return {
    now: () => systemClock.now() * factor,
    sleep: (ms, signal) => systemClock.sleep(ms / factor, signal),
    // Deadlines stay as they are: the work itself is not faster.
    deadline: (ms, cause, signal) => systemClock.deadline(ms, cause, signal),
  }
}

describe('strangers', () => {
  test('find the provider of a CID within seconds of their start, and can call it', async () => {
    const boot = await startMemoryNetwork()
    const startedMs = performance.now()
    const nodes = await Promise.all(
      [0, 1, 2].map(() => startMemoryNetwork({ bootstrap: boot.addresses() })),
    )
    const [provider, ...seekers] = nodes
    const cid = await cidNumber(1)
    provider!.discovery.provide(cid)
    provider!.rpc.handle('test/hello', async () => new TextEncoder().encode('hello'))
    for (const seeker of seekers) {
      expect(await findAll(seeker, cid, 1)).toEqual([provider!.peerId])
      const reply = await seeker.rpc.call(provider!.peerId, 'test/hello', new Uint8Array())
      expect(new TextDecoder().decode(reply)).toBe('hello')
    }
    expect(performance.now() - startedMs).toBeLessThan(5000)
    expect(boot.reachability()).toBe('public')
    // It was dialled by the others, and only by finding it.
    expect(provider!.reachability()).toBe('public')
  })

  test('all find one another under a CID that all provide, without themselves', async () => {
    const boot = await startMemoryNetwork()
    const nodes = await Promise.all(
      Array.from({ length: 8 }, () => startMemoryNetwork({ bootstrap: boot.addresses() })),
    )
    const cid = await cidNumber(2)
    for (const node of nodes) node.discovery.provide(cid)
    const ids = nodes.map(({ peerId }) => peerId)
    for (const node of nodes) {
      expect(await findAll(node, cid, 7)).toEqual(ids.filter((id) => id !== node.peerId).sort())
    }
    expect(await findAll(boot, cid, 8)).toEqual(ids.toSorted())
  })

  test('find what the bootstrap node itself provides', async () => {
    const boot = await startMemoryNetwork()
    const node = await startMemoryNetwork({ bootstrap: boot.addresses() })
    const cid = await cidNumber(3)
    boot.discovery.provide(cid)
    expect(await findAll(node, cid, 1)).toEqual([boot.peerId])
    boot.discovery.unprovide(cid)
    while ((await find(node, cid)).length > 0) await new Promise((r) => setTimeout(r, 20))
  })
})

describe('a look-up', () => {
  test('lets the rest of the process work, however often it is made', async () => {
    const alone = await startMemoryNetwork()
    const cid = await cidNumber(0)
    const over = new AbortController()
    setTimeout(() => over.abort(), 50)
    while (!over.signal.aborted) await find(alone, cid)
  })

  test('ends at once with nobody to ask', async () => {
    const alone = await startMemoryNetwork()
    const startedMs = performance.now()
    expect(await find(alone, await cidNumber(4))).toEqual([])
    expect(performance.now() - startedMs).toBeLessThan(200)
  })

  test('ends soon when the bootstrap is gone', async () => {
    const node = await startMemoryNetwork({ bootstrap: [await deadAddress()] })
    const startedMs = performance.now()
    expect(await find(node, await cidNumber(4))).toEqual([])
    expect(performance.now() - startedMs).toBeLessThan(3000)
  })

  test('ends when nobody provides, and when those who knew are dead', async () => {
    const boot = await startMemoryNetwork()
    const [node, other] = await Promise.all([
      startMemoryNetwork({ bootstrap: boot.addresses() }),
      startMemoryNetwork({ bootstrap: boot.addresses() }),
    ])
    const cid = await cidNumber(5)
    other.discovery.provide(cid)
    await findAll(node, cid, 1)
    const startedMs = performance.now()
    expect(await find(node, await cidNumber(6))).toEqual([])
    await boot.stop()
    await other.stop()
    await find(node, await cidNumber(7))
    expect(performance.now() - startedMs).toBeLessThan(5000)
  })

  test('ends at its deadline and at its signal without a fault', async () => {
    const boot = await startMemoryNetwork()
    const node = await startMemoryNetwork({ bootstrap: boot.addresses() })
    await until(() => node.connectedPeers().length === 1)
    const peers: string[] = []
    const options = { deadlineMs: 1, signal: AbortSignal.abort() }
    for await (const peer of node.discovery.find(await cidNumber(8), options)) peers.push(peer)
    expect(peers).toEqual([])
  })

  test('started before anybody is connected waits for the bootstrap', async () => {
    const boot = await startMemoryNetwork()
    const provider = await startMemoryNetwork({ bootstrap: boot.addresses() })
    const cid = await cidNumber(9)
    provider.discovery.provide(cid)
    await findAll(boot, cid, 1)
    const late = await startMemoryNetwork({ bootstrap: boot.addresses() })
    expect(await find(late, cid)).toEqual([provider.peerId])
  })
})

async function deadAddress(): Promise<string> {
  return `${freshAddress()}/p2p/${(await createIdentity()).peerId}`
}

describe('a network that loses its bootstrap', () => {
  test('announces again when it is back, because a restart forgets', async () => {
    const identity = await createIdentity()
    const listen = [freshAddress()]
    const clock = fastClock(10)
    const boot = await startMemoryNetwork({ identity, listen })
    const bootstrap = boot.addresses()
    const provider = await startMemoryNetwork({ bootstrap, clock })
    const cid = await cidNumber(10)
    provider.discovery.provide(cid)
    await findAll(boot, cid, 1)
    await boot.stop()
    await until(() => provider.connectedPeers().length === 0)

    const reborn = await startMemoryNetwork({ identity, listen })
    const seeker = await startMemoryNetwork({ bootstrap })
    expect(await findAll(seeker, cid, 1)).toEqual([provider.peerId])
    expect(reborn.connectedPeers()).toContain(provider.peerId)
  })

  test('lets a node that restarts come back through the peers of last time', async () => {
    const boot = await startMemoryNetwork()
    const bootstrap = boot.addresses()
    const stayer = await startMemoryNetwork({ bootstrap })
    const identity = await createIdentity()
    const records = createMemoryRecordStore()
    const listen = [freshAddress()]
    const first = await startMemoryNetwork({ bootstrap, identity, records, listen })
    await first.connect(addressOf(stayer))
    await until(() => first.connectedPeers().length === 2 && stayer.connectedPeers().length === 2)
    await first.stop()
    await boot.stop()
    await until(() => stayer.connectedPeers().length === 0)

    const { logger, events } = createRecorder()
    const again = await startMemoryNetwork({ bootstrap, identity, records, listen, logger })
    await until(() => again.connectedPeers().length === 1)
    expect(again.connectedPeers()).toEqual([stayer.peerId])
    const told = events.filter(({ event }) => event.startsWith('bootstrap'))
    expect(told).toEqual([
      expect.objectContaining({ level: 'warn', event: 'bootstrap_unreachable' }),
    ])
  })
})
