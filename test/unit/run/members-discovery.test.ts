import { expect, test } from 'vitest'
import { silentLogger } from '../../../src/log.ts'
import { seekMembers, watchConnections, type Watched } from '../../../src/run/members-discovery.ts'
import { createManualClock } from '../../manual-clock.ts'

type Listener = (peer: string) => void

/** A run whose members are `peers`, on a network in which nobody can be dialled. */
function watch(rule: Watched['manifest']['averaging']['rule'], peers: readonly string[]) {
  const clock = createManualClock()
  const ending = new AbortController()
  const dialled: string[] = []
  const doubted = new Set<string>()
  let lose: Listener = () => {}
  let meet: Listener = () => {}
  const network: Watched['network'] = {
    async connect(peer, signal) {
      dialled.push(peer)
      await clock.sleep(100, signal)
      throw new Error('nobody there')
    },
    connectedPeers: () => [],
    onConnect(listener) {
      meet = listener
      return () => {}
    },
    onDisconnect(listener) {
      lose = listener
      return () => {}
    },
  }
  const stop = watchConnections(
    {
      id: 'run',
      self: 'self',
      clock,
      logger: silentLogger,
      network,
      state: { sync: async () => {} },
      manifest: { averaging: { rule } },
      membership: {
        others: () => peers.map((peer) => ({ peer })),
        doubt: (peer) => void doubted.add(peer),
        trust: (peer) => void doubted.delete(peer),
      },
    },
    ending.signal,
  )
  return {
    clock,
    dialled,
    doubted,
    lose: (peer: string) => lose(peer),
    meet: (peer: string) => meet(peer),
    async end() {
      ending.abort()
      await stop()
    },
  }
}

test('a member that hangs up is left out and dialled at once, and trusted when it is back', async () => {
  const run = watch('gossip-diloco', ['a'])
  run.lose('a')
  run.lose('nobody of the run')
  expect([...run.doubted]).toEqual(['a'])
  expect(run.dialled).toEqual(['a'])
  run.meet('a')
  expect([...run.doubted]).toEqual([])
  await run.end()
})

test('in an all-reduce run the round finds out who is gone', async () => {
  const run = watch('diloco', ['gone'])
  run.lose('gone')
  await run.clock.advance(20_000)
  expect([...run.doubted]).toEqual([])
  await run.end()
})

test('one that hangs up again and again is dialled now and then, of many only some', async () => {
  const peers = Array.from({ length: 200 }, (_, index) => `peer ${index}`)
  const run = watch('gossip-diloco', peers)
  for (let time = 0; time < 50; time++) {
    run.lose('peer 0')
    await run.clock.advance(200)
  }
  expect(run.dialled).toHaveLength(1)
  await run.clock.advance(15_000)
  run.lose('peer 0')
  expect(run.dialled).toHaveLength(2)
  for (const peer of peers) run.lose(peer)
  expect(run.dialled.length).toBeLessThanOrEqual(40)
  expect(run.doubted.size).toBe(200)
  await run.end()
})

test('who is alone dials others each time when there are many', async () => {
  const clock = createManualClock()
  const ending = new AbortController()
  const peers = Array.from({ length: 80 }, (_, index) => `peer ${index}`)
  const dialled: string[] = []
  const run = {
    id: 'run',
    self: 'self',
    clock,
    logger: silentLogger,
    network: {
      async connect(peer: string) {
        dialled.push(peer)
        throw new Error('nobody there')
      },
      connectedPeers: () => ['peer 0'],
    },
    state: { sync: async () => {} },
  }
  const seeking = seekMembers(run, () => peers, ending.signal)
  await clock.advance(1_500)
  expect(dialled).toHaveLength(64)
  expect(new Set(dialled).size).toBe(64)
  await clock.advance(1_000)
  ending.abort()
  await seeking
  expect(new Set(dialled)).toEqual(new Set(peers.slice(1)))
})
