import { encode } from '@ipld/dag-cbor'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { seededRandom } from '../../../src/random.ts'
import { decodeSyncReply, encodeSyncRequest } from '../../../src/state/messages.ts'
import { settle } from '../../manual-clock.ts'
import { createAuthor } from './author.ts'
import { identityOf, pushTo, record, rejectedOf, RUN, stepsOf, useTestSwarm } from './swarm.ts'

const start = useTestSwarm()

describe('equivocation', () => {
  test('seen by one is proven to all, and the author is gone everywhere', async () => {
    const { member, connectAll, network, clock } = start()
    const members = await Promise.all(['anna', 'ben', 'cleo'].map((name) => member(name)))
    const [anna, ben, cleo] = members
    connectAll(members)
    await settle()
    const liar = createAuthor(await identityOf('liar'))
    const first = await liar.snapshot({ ...record({ outerStep: 1 }) })
    const other = liar.fork()
    const left = await liar.update({ ...record({ outerStep: 2 }) })
    const right = await other.update({ ...record({ outerStep: 3 }) })
    await pushTo(network, anna!.peer, [first.bytes], { from: 'liar' })
    expect(Object.values(stepsOf(cleo!.state))).toEqual([1])
    // Two histories to two members, at the same time.
    await Promise.all([
      pushTo(network, anna!.peer, [left.bytes], { from: 'liar' }),
      pushTo(network, ben!.peer, [right.bytes], { from: 'liar' }),
    ])
    await clock.advance(15_000)
    for (const { state } of members) {
      expect(state.equivocators()).toEqual([(await identityOf('liar')).peerId])
      expect(state.members()).toEqual([])
    }
    expect(members.some((each) => rejectedOf(each, 'equivocation') > 0)).toBe(true)
    // A newcomer is told by the proof alone.
    const dora = await member('dora')
    network.connect(dora.peer, cleo!.peer)
    await settle()
    expect(dora.state.equivocators().length).toBe(1)
  })
})

describe('bad senders', () => {
  test('every bad envelope is counted by reason, and the good ones beside it count too', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const author = createAuthor(await identityOf('bob'))
    const good = await author.snapshot({ ...record({ outerStep: 4 }) })
    const otherRun = await createAuthor(await identityOf('bob'), { run: 'x' }).snapshot({})
    await pushTo(network, anna.peer, [Uint8Array.of(1), otherRun.bytes, good.bytes, good.bytes])
    expect(rejectedOf(anna, 'malformed')).toBe(1)
    expect(rejectedOf(anna, 'other_run')).toBe(1)
    expect(anna.metrics.read('envelopes_accepted_total')).toBe(1)
    expect(Object.values(stepsOf(anna.state))).toEqual([4])
    const newer = await author.snapshot({ ...record({ outerStep: 5 }) })
    await pushTo(network, anna.peer, [newer.bytes])
    await pushTo(network, anna.peer, [good.bytes])
    expect(rejectedOf(anna, 'stale')).toBe(1)
    expect(Object.values(stepsOf(anna.state))).toEqual([5])
  })

  test('who sends many is ignored for a minute, nobody else is', async () => {
    const { member, network, clock } = start()
    const anna = await member('anna')
    const good = await createAuthor(await identityOf('bob')).snapshot({ ...record() })
    const junk = Array.from({ length: LIMITS.badEnvelopes + 1 }, (_, index) =>
      Uint8Array.of(index, 1, 2),
    )
    await pushTo(network, anna.peer, junk)
    await expect(pushTo(network, anna.peer, [good.bytes])).rejects.toMatchObject({
      code: 'refused',
    })
    expect(anna.state.members()).toEqual([])
    await pushTo(network, anna.peer, [good.bytes], { from: 'honest' })
    expect(anna.state.members().length).toBe(1)
    await clock.advance(60_001)
    await pushTo(network, anna.peer, [good.bytes])
  })

  test('messages that are none are refused and counted, whatever the bytes', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const { peerId } = await identityOf('mallory')
    const { rpc } = network.join(peerId)
    network.connect(peerId, anna.peer)
    const random = seededRandom('messages')
    const messages = [
      new Uint8Array(0),
      encode({ version: 1, run: RUN, parts: [{ ageMs: -1, envelopes: [] }], proofs: [] }),
      encode({ version: 1, run: RUN, parts: [], proofs: [], extra: 1 }),
      new Uint8Array(LIMITS.rpcMessageBytes + 1),
      ...Array.from({ length: 10 }, () =>
        Uint8Array.from({ length: 40 }, () => random.integer(256)),
      ),
    ]
    for (const message of messages) {
      for (const method of ['state/push', 'state/sync']) {
        await expect(rpc.call(anna.peer, method, message)).rejects.toMatchObject({
          code: expect.stringMatching(/message_invalid|refused/),
        })
      }
    }
    expect(rejectedOf(anna, 'message_invalid')).toBeGreaterThan(10)
    await anna.state.publish(record({ outerStep: 1 }))
  })

  test('newer software is told so, and not taken for an offender', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const { peerId } = await identityOf('newer')
    const { rpc } = network.join(peerId)
    network.connect(peerId, anna.peer)
    const message = encode({ version: 2, run: RUN, parts: [], colour: 'blue' })
    for (let time = 0; time < 2 * LIMITS.badEnvelopes; time++) {
      await expect(rpc.call(anna.peer, 'state/push', message)).rejects.toMatchObject({
        code: 'version_unsupported',
      })
    }
    const request = encodeSyncRequest({ run: RUN, heads: [], proven: [] })
    await rpc.call(anna.peer, 'state/sync', request)
    expect(rejectedOf(anna, 'version_unsupported')).toBe(2 * LIMITS.badEnvelopes)
  })

  test('a reply full of lies changes nothing', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const { peerId } = await identityOf('mallory')
    const { rpc } = network.join(peerId)
    let asked = 0
    rpc.handle('state/sync', async () => {
      asked++
      const junk = { ageMs: 0, envelopes: [Uint8Array.of(9)] }
      return encode({ version: 1, parts: [junk], proofs: [], wanted: [], more: true })
    })
    network.connect(peerId, anna.peer)
    await settle()
    expect(asked).toBe(1)
    expect(rejectedOf(anna, 'malformed')).toBe(1)
    await expect(anna.state.sync(peerId)).resolves.toBeUndefined()
  })

  test('who asks for everything gets it in bounded messages', async () => {
    const { member, network } = start()
    const anna = await member('anna')
    const envelopes: Uint8Array[] = []
    for (let index = 0; index < 300; index++) {
      const author = createAuthor(await identityOf(`peer ${index}`))
      envelopes.push((await author.snapshot({ ...record({ outerStep: index }) })).bytes)
    }
    for (let index = 0; index < 300; index += 100) {
      await pushTo(network, anna.peer, envelopes.slice(index, index + 100))
    }
    const { peerId } = await identityOf('asker')
    const { rpc } = network.join(peerId)
    network.connect(peerId, anna.peer)
    const request = encodeSyncRequest({ run: RUN, heads: [], proven: [] })
    const reply = decodeSyncReply(await rpc.call(anna.peer, 'state/sync', request))
    expect(reply.more).toBe(true)
    expect(reply.parts.length).toBe(LIMITS.envelopesPerMessage)

    const ben = await member('ben')
    network.connect(anna.peer, ben.peer)
    await ben.state.sync(anna.peer)
    expect(ben.state.members().length).toBe(300)
  })
})
