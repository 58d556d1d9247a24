import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { encodeSyncReply } from '../../../src/state/messages.ts'
import { settle } from '../../manual-clock.ts'
import { createAuthor } from './author.ts'
import { identityOf, pushTo, record, RUN, stepsOf, useTestSwarm, type TestMember } from './swarm.ts'

const start = useTestSwarm()

describe('records', () => {
  test('are seen by connected members at once', async () => {
    const { member, connectAll } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await settle()
    let changes = 0
    const remove = ben.state.onChange(() => changes++)
    await anna.state.publish(record({ outerStep: 3, loss: 2.5, partners: [ben.peer] }))
    await settle()
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 3 })
    expect(ben.state.members()[0]?.record).toEqual(
      record({ outerStep: 3, loss: 2.5, partners: [ben.peer] }),
    )
    expect(changes).toBe(1)
    remove()
    await anna.state.publish(record({ outerStep: 4 }))
    await settle()
    expect(changes).toBe(1)
    expect(stepsOf(anna.state)).toEqual({ [anna.peer]: 4 })
  })

  test('published before the link was there arrive with it, both ways', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    await anna.state.publish(record({ outerStep: 1 }))
    await ben.state.publish(record({ outerStep: 2 }))
    network.connect(anna.peer, ben.peer)
    await settle()
    const both = { [anna.peer]: 1, [ben.peer]: 2 }
    expect(stepsOf(anna.state)).toEqual(both)
    expect(stepsOf(ben.state)).toEqual(both)
    expect(anna.state.members().map(({ peer }) => peer)).toEqual([anna.peer, ben.peer].sort())
  })

  test('travel along a line within a moment', async () => {
    const { member, network } = start()
    const line: TestMember[] = []
    for (let index = 0; index < 8; index++) line.push(await member(`peer ${index}`))
    for (const [index, { peer }] of line.entries()) {
      const next = line[index + 1]
      if (next !== undefined) network.connect(peer, next.peer)
    }
    await settle()
    await line[0]?.state.publish(record({ outerStep: 7 }))
    await settle()
    await settle()
    for (const { state } of line) expect(stepsOf(state)).toEqual({ [line[0]!.peer]: 7 })
  })

  test('whose push was lost arrive by anti-entropy', async () => {
    const { member, network, connectAll, clock } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await settle()
    await anna.state.publish(record({ outerStep: 1 }))
    await settle()
    network.setLoss(1)
    for (let step = 2; step < 6; step++) await anna.state.publish(record({ outerStep: step }))
    await settle()
    network.setLoss(0)
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 1 })
    await clock.advance(7_000)
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 5 })
  })

  test('whose predecessors were lost are completed at once', async () => {
    const { member, network, connectAll } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await settle()
    // Unlike what follows, long enough to be followed by several updates before the next snapshot.
    const partners = Array.from({ length: 20 }, (_, index) => `${'x'.repeat(100)}${index}`)
    await anna.state.publish(record({ outerStep: 1, partners }))
    await settle()
    network.setLoss(1)
    await anna.state.publish(record({ outerStep: 2, partners }))
    await settle()
    network.setLoss(0)
    await anna.state.publish(record({ outerStep: 3, partners }))
    await settle()
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 3 })
    expect(ben.metrics.read('envelopes_accepted_total')).toBe(3)
  })

  test('published anyway need no heartbeat beside', async () => {
    const { member, connectAll, clock } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await settle()
    for (let step = 1; step <= 10; step++) {
      await anna.state.publish(record({ outerStep: step }))
      await clock.advance(14_000)
    }
    expect(ben.metrics.read('envelopes_accepted_total')).toBe(10)
    await clock.advance(14_000)
    expect(ben.metrics.read('envelopes_accepted_total')).toBe(11)
  })

  test('live as long as their heartbeat: a dead peer is gone after one life', async () => {
    const { member, connectAll, clock } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await settle()
    await anna.state.publish(record({ outerStep: 1 }))
    await ben.state.publish(record({ outerStep: 2 }))
    await clock.advance(300_000)
    expect(Object.keys(stepsOf(ben.state)).length).toBe(2)
    expect(ben.state.members().every(({ ageMs }) => ageMs <= 15_000)).toBe(true)

    await anna.service.close()
    let changes = 0
    ben.state.onChange(() => changes++)
    await clock.advance(44_000)
    expect(Object.keys(stepsOf(ben.state)).length).toBe(2)
    await clock.advance(17_000)
    expect(stepsOf(ben.state)).toEqual({ [ben.peer]: 2 })
    await clock.advance(8_000)
    expect(changes).toBeGreaterThan(0)
  })

  test('of the dead do not come back through a third peer that was away', async () => {
    const { member, network, clock } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    const cleo = await member('cleo')
    network.connect(anna.peer, ben.peer)
    network.connect(anna.peer, cleo.peer)
    await settle()
    await anna.state.publish(record({ outerStep: 1 }))
    await settle()
    await anna.service.close()
    network.disconnect(anna.peer, ben.peer)
    network.disconnect(anna.peer, cleo.peer)
    await clock.advance(50_000)
    network.connect(ben.peer, cleo.peer)
    await clock.advance(11_000)
    expect(stepsOf(ben.state)).toEqual({})
    expect(stepsOf(cleo.state)).toEqual({})
    // A newcomer does not inherit it either.
    const dora = await member('dora')
    network.connect(dora.peer, ben.peer)
    await clock.advance(10_000)
    expect(stepsOf(dora.state)).toEqual({})
  })

  test('keep their age on the way: late news expires when the first does', async () => {
    const { member, network, clock } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    await anna.state.publish(record({ outerStep: 1 }))
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.service.close()
    await clock.advance(40_000)
    const cleo = await member('cleo')
    network.connect(cleo.peer, ben.peer)
    await settle()
    expect(cleo.state.members()).toMatchObject([{ peer: anna.peer, ageMs: 40_000 }])
    await clock.advance(20_000)
    expect(stepsOf(cleo.state)).toEqual({})
  })

  test('that do not parse are passed on but not shown', async () => {
    const { member, network } = start()
    const ben = await member('ben')
    const cleo = await member('cleo')
    network.connect(ben.peer, cleo.peer)
    await settle()
    const odd = await createAuthor(await identityOf('anna')).snapshot({ status: 'dancing' })
    await pushTo(network, ben.peer, [odd.bytes])
    expect(ben.state.members()).toEqual([])
    expect(cleo.state.members()).toEqual([])
    expect(cleo.metrics.read('envelopes_accepted_total')).toBe(1)
  })

  test('larger than an envelope are refused before they are signed into the chain', async () => {
    const { member } = start()
    const anna = await member('anna')
    await anna.state.publish(record({ outerStep: 1 }))
    await expect(
      anna.state.publish(record({ partners: Array(33).fill('x') })),
    ).rejects.toMatchObject({ code: 'internal' })
    await anna.state.publish(record({ outerStep: 2, partners: Array(32).fill('x'.repeat(128)) }))
    expect(stepsOf(anna.state)).toEqual({ [anna.peer]: 2 })
  })

  test('cost their author a bounded number of envelopes on the wire', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.state.publish(record())
    await settle()
    const before = network.bytes()
    for (let step = 1; step <= 100; step++) {
      await anna.state.publish(record({ outerStep: step, tokens: step * 1000, loss: 3 / step }))
      await settle()
    }
    expect((network.bytes() - before) / 100).toBeLessThan(800)
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 100 })
  })
})

describe('slow peers', () => {
  test('keep no place in the exchanges for long, and nobody else waiting', async () => {
    const { member, network, clock } = start()
    const anna = await member('anna')
    // As many as exchanges may run at once, each with one more lie to tell every few seconds.
    for (let index = 0; index < LIMITS.syncsInFlight; index++) {
      const slow = network.join((await identityOf(`slow ${index}`)).peerId)
      slow.rpc.handle('state/sync', async () => {
        await clock.sleep(9_000)
        const { peerId } = await identityOf(`nobody ${clock.now()}`)
        const wanted = [{ author: peerId, document: 'record' as const, last: null }]
        return encodeSyncReply({ parts: [], proofs: [], wanted, more: true })
      })
      slow.rpc.handle('state/push', async () => new Uint8Array(0))
      network.connect(anna.peer, slow.peerId)
    }
    await settle()
    const mute = network.join((await identityOf('mute')).peerId)
    let asked = 0
    mute.rpc.handle('state/sync', async () => {
      asked++
      return encodeSyncReply({ parts: [], proofs: [], wanted: [], more: false })
    })
    network.connect(anna.peer, mute.peerId)
    await clock.advance(20_000)
    expect(asked).toBe(0)
    await clock.advance(15_000)
    expect(asked).toBeGreaterThan(0)
  })
})

describe('runs', () => {
  test('are kept apart, and closed ones are answered as unknown', async () => {
    const { member, stranger, network } = start()
    const anna = await member('anna')
    const ben = await member('ben')
    const other = await ben.service.open('bafyother', { admins: [] })
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.state.publish(record({ outerStep: 1 }))
    await settle()
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 1 })
    expect(other.members()).toEqual([])
    await expect(other.sync(anna.peer)).rejects.toMatchObject({ code: 'run_unknown' })
    await expect(ben.service.open(RUN, { admins: [] })).rejects.toMatchObject({ code: 'conflict' })

    const zoe = await stranger('zoe')
    network.connect(anna.peer, zoe.peer)
    await settle()
    await expect(anna.state.sync(zoe.peer)).rejects.toMatchObject({ code: 'run_unknown' })
    await ben.state.close()
    await expect(anna.state.sync(ben.peer)).rejects.toMatchObject({ code: 'run_unknown' })
    await expect(ben.state.publish(record())).rejects.toMatchObject({ code: 'aborted' })
    await anna.state.publish(record({ outerStep: 2 }))
  })

  test('a peer that does not take part is asked seldom, and heard when it joins', async () => {
    const { member, stranger, network, clock } = start()
    const anna = await member('anna')
    const zoe = await stranger('zoe')
    await anna.state.publish(record({ outerStep: 1 }))
    network.connect(anna.peer, zoe.peer)
    await settle()
    const before = network.messages()
    await clock.advance(50_000)
    expect(network.messages()).toBe(before)
    await clock.advance(30_000)
    expect(network.messages()).toBeGreaterThan(before)
    expect(network.messages()).toBeLessThan(before + 4)

    const state = await zoe.service.open(RUN, { admins: [] })
    await settle()
    expect(stepsOf(state)).toEqual({ [anna.peer]: 1 })
    await state.publish(record({ outerStep: 9 }))
    await settle()
    expect(stepsOf(anna.state)).toEqual({ [anna.peer]: 1, [zoe.peer]: 9 })
  })

  test('closing lets the last record leave first', async () => {
    const { member, connectAll, clock } = start({ latencyMs: 100 })
    const anna = await member('anna')
    const ben = await member('ben')
    connectAll([anna, ben])
    await clock.advance(1_000)
    await anna.state.publish(record({ status: 'leaving', outerStep: 5 }))
    const closed = anna.state.close()
    await clock.advance(500)
    await closed
    expect(ben.state.members()).toMatchObject([{ record: { status: 'leaving', outerStep: 5 } }])
  })

  test('closing does not wait for a peer that never answers', async () => {
    const { member, network, clock } = start()
    const anna = await member('anna')
    const never = new Promise<Uint8Array>(() => {})
    const deaf = network.join((await identityOf('deaf')).peerId)
    deaf.rpc.handle('state/sync', () => never)
    network.connect(anna.peer, deaf.peerId)
    await settle()
    const syncing = expect(anna.state.sync(deaf.peerId)).rejects.toMatchObject({ code: 'aborted' })
    // Nor does one that waits for its turn, once it is told to stop.
    const impatient = new AbortController()
    const second = expect(anna.state.sync(deaf.peerId, impatient.signal)).rejects.toThrow()
    impatient.abort()
    await second
    const closed = anna.state.close()
    await clock.advance(2_000)
    await syncing
    await closed
  })
})
