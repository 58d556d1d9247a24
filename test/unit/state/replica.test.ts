import { decode, encode } from '@ipld/dag-cbor'
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { snapshotOf } from '../../../src/state/document.ts'
import type { Envelope } from '../../../src/state/envelope.ts'
import { headOf, Replica, type Receipt } from '../../../src/state/replica.ts'
import { createManualClock, type ManualClock } from '../../manual-clock.ts'
import { createAuthor } from './author.ts'
import { identityOf } from './swarm.ts'

const TTL_MS = 60_000
const RUN = 'bafyreirun'
const alice = await identityOf('alice')
const bob = await identityOf('bob')

function open(): { replica: Replica; clock: ManualClock } {
  const clock = createManualClock()
  const replica = new Replica({ run: RUN, admins: [alice.peerId], ttlMs: TTL_MS, clock })
  return { replica, clock }
}

const give = (replica: Replica, envelopes: Envelope[], ageMs = 0): Promise<Receipt> =>
  replica.receive(
    envelopes.map(({ bytes }) => bytes),
    ageMs,
  )

const shown = (replica: Replica): Record<string, Record<string, unknown>> =>
  Object.fromEntries(
    replica.chains('record').map(({ author, values }) => [author, Object.fromEntries(values)]),
  )

async function forged(envelope: Envelope): Promise<Uint8Array> {
  const [body] = decode<[Uint8Array, Uint8Array]>(envelope.bytes)
  return encode([body, await bob.sign(body)])
}

describe('replica takes over', () => {
  test('a chain in order, and knows it the second time', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const chain = [
      await author.snapshot({ step: 1 }),
      await author.update({ step: 2 }),
      await author.update({ step: 3, loss: 1.5 }),
    ]
    const receipt = await give(replica, chain)
    expect(receipt).toMatchObject({ accepted: chain, rejected: [], gap: false })
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 3, loss: 1.5 } })
    expect(await give(replica, chain)).toEqual({
      accepted: [],
      rejected: [],
      proofs: [],
      gap: false,
    })
  })

  test('a snapshot in place of what it has not seen, and of what it has', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    const missed = await author.update({ step: 2 })
    const snapshot = await author.snapshot({ step: 3 })
    await give(replica, [first])
    expect((await give(replica, [snapshot])).accepted).toEqual([snapshot])
    expect(replica.chain('record', alice.peerId)?.envelopes).toEqual([snapshot])
    // What was missed is old news now.
    expect((await give(replica, [missed, first])).rejected).toEqual(['stale', 'stale'])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 3 } })
  })

  test('a higher epoch, and nothing of a lower one after it', async () => {
    const { replica } = open()
    const old = createAuthor(alice, { epoch: 4 })
    const young = createAuthor(alice, { epoch: 9 })
    await give(replica, [await old.snapshot({ step: 100 })])
    await give(replica, [await young.snapshot({ step: 1 })])
    expect((await give(replica, [await old.update({ step: 101 })])).rejected).toEqual(['stale'])
    expect((await give(replica, [await old.snapshot({ step: 102 })])).rejected).toEqual(['stale'])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 1 } })
  })

  test('updates only where their predecessors are', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const chain = [
      await author.snapshot({ step: 1 }),
      await author.update({ step: 2 }),
      await author.update({ step: 3 }),
    ]
    const [snapshot, second, third] = chain
    expect(await give(replica, [third!])).toMatchObject({ accepted: [], gap: true })
    await give(replica, [snapshot!])
    expect(await give(replica, [third!])).toMatchObject({ accepted: [], gap: true, rejected: [] })
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 1 } })
    await give(replica, [second!, third!])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 3 } })
  })

  test('the same whatever comes twice and at once', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const chain = [await author.snapshot({ step: 1 }), await author.update({ step: 2 })]
    const receipts = await Promise.all([chain, chain, chain].map((each) => give(replica, each)))
    expect(receipts.flatMap(({ accepted }) => accepted).length).toBe(2)
    expect(receipts.flatMap(({ rejected }) => rejected)).toEqual([])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 2 } })
  })
})

describe('replica drops', () => {
  test.each([
    ['malformed', async () => Uint8Array.of(1, 2, 3)],
    ['oversized', async () => new Uint8Array(LIMITS.envelopeBytes + 1)],
    ['signature', async () => forged(await createAuthor(alice).snapshot({ step: 1 }))],
    [
      'other_run',
      async () => (await createAuthor(alice, { run: 'bafyother' }).snapshot({ step: 1 })).bytes,
    ],
    [
      'not_admin',
      async () => (await createAuthor(bob, { document: 'board' }).snapshot({ a: [1, 2] })).bytes,
    ],
    [
      'update_invalid',
      async () => {
        const foreign = snapshotOf(99, new Map([['step', 1]]))
        return (await createAuthor(alice).crafted('snapshot', foreign)).bytes
      },
    ],
  ])('what is %s', async (reason, make) => {
    const { replica } = open()
    const receipt = await replica.receive([await make()], 0)
    expect(receipt).toEqual({ accepted: [], rejected: [reason], proofs: [], gap: false })
    expect(shown(replica)).toEqual({})
    expect(replica.chains('board')).toEqual([])
  })

  test('an update that breaks the rules, and keeps what was there', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    await give(replica, [await author.snapshot({ step: 1 })])
    const bad = await author.crafted('update', snapshotOf(99, new Map([['step', 9]])))
    expect((await give(replica, [bad])).rejected).toEqual(['update_invalid'])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 1 } })
    // Its author may recover with a snapshot.
    await give(replica, [await author.snapshot({ step: 3 })])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 3 } })
  })

  test('updates beyond the length and the weight of a chain', async () => {
    const { replica } = open()
    const long = createAuthor(alice)
    const chain = [await long.snapshot({ step: 0 })]
    for (let step = 1; step <= LIMITS.envelopeChain + 1; step++) {
      chain.push(await long.update({ step }))
    }
    const { rejected } = await give(replica, chain)
    expect(rejected).toEqual(['chain_too_long'])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: LIMITS.envelopeChain } })

    const heavy = createAuthor(bob)
    const text = (length: number): string => 'x'.repeat(length)
    await give(replica, [await heavy.snapshot({ text: text(7000) })])
    await give(replica, [await heavy.update({ text: text(7001) })])
    const third = await give(replica, [await heavy.update({ text: text(7002) })])
    expect(third.rejected).toEqual(['chain_too_long'])
  })
})

describe('equivocation', () => {
  test('by two envelopes with one number excludes the author and is kept as proof', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    const other = author.fork()
    const left = await author.update({ step: 2 })
    const right = await other.update({ step: 200 })
    await give(replica, [first, left])
    const receipt = await give(replica, [right])
    expect(receipt).toMatchObject({ accepted: [], rejected: ['equivocation'] })
    expect(receipt.proofs.length).toBe(1)
    expect(shown(replica)).toEqual({})
    expect([...replica.proofs().keys()]).toEqual([alice.peerId])
    // Whatever else it signs is dropped, in later lives too.
    const later = await createAuthor(alice, { epoch: 99 }).snapshot({ step: 3 })
    expect((await give(replica, [later])).rejected).toEqual(['excluded'])
    const board = await createAuthor(alice, { document: 'board' }).snapshot({ a: [1, 2] })
    expect((await give(replica, [board])).rejected).toEqual(['excluded'])
  })

  test('by a successor that names another predecessor is seen as well', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    const other = author.fork()
    await give(replica, [first, await author.update({ step: 2 })])
    await other.update({ step: 200 })
    const successor = await other.update({ step: 201 })
    expect((await give(replica, [successor])).rejected).toEqual(['equivocation'])
    expect(shown(replica)).toEqual({})
  })

  test('cannot be faked by one who does not have the key', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    const twin = await createAuthor(alice).snapshot({ step: 2 })
    await give(replica, [first])
    const fake = await forged(twin)
    expect((await replica.receive([fake], 0)).rejected).toEqual(['signature'])
    expect(await replica.receiveProof([first.bytes, fake])).toBe('proof_invalid')
    expect(await replica.receiveProof([fake, first.bytes])).toBe('proof_invalid')
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 1 } })
  })

  test('is proven to others by the two envelopes alone', async () => {
    const { replica } = open()
    const first = await createAuthor(alice).snapshot({ step: 1 })
    const twin = await createAuthor(alice).snapshot({ step: 2 })
    const proof = await replica.receiveProof([first.bytes, twin.bytes])
    expect(proof).toEqual([first, twin])
    expect(await replica.receiveProof([twin.bytes, first.bytes])).toBe('excluded')
    expect((await give(replica, [first])).rejected).toEqual(['excluded'])
  })

  test('is not two honest envelopes, two lives, or two runs', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    const second = await author.update({ step: 2 })
    const life = await createAuthor(alice, { epoch: 2 }).snapshot({ step: 1 })
    const run = await createAuthor(alice, { run: 'bafyother' }).snapshot({ step: 2 })
    for (const other of [first, second, life, run]) {
      expect(await replica.receiveProof([first.bytes, other.bytes])).toBe('proof_invalid')
    }
    expect(await replica.receiveProof([run.bytes, run.bytes])).toBe('proof_invalid')
  })

  test('proofs are bounded, the oldest gives way', async () => {
    const { replica } = open()
    const liars = await Promise.all(
      Array.from({ length: LIMITS.equivocationProofs + 3 }, (_, index) =>
        identityOf(`liar ${index}`),
      ),
    )
    for (const liar of liars) {
      const first = await createAuthor(liar).snapshot({ step: 1 })
      const twin = await createAuthor(liar).snapshot({ step: 2 })
      await replica.receiveProof([first.bytes, twin.bytes])
    }
    const kept = liars.slice(3).map(({ peerId }) => peerId)
    expect([...replica.proofs().keys()]).toEqual(kept)
  })
})

describe('expiry', () => {
  test('comes one life after the making, wherever the envelope has been meanwhile', async () => {
    const { replica, clock } = open()
    const author = createAuthor(alice)
    await give(replica, [await author.snapshot({ step: 1 })], 20_000)
    const chain = replica.chain('record', alice.peerId)!
    expect(replica.ageMs(chain)).toBe(20_000)
    await clock.advance(39_999)
    expect(replica.ageMs(chain)).toBe(59_999)
    expect(Object.keys(shown(replica))).toEqual([alice.peerId])
    expect(replica.sweep()).toBe(false)
    await clock.advance(1)
    expect(shown(replica)).toEqual({})
    expect(replica.sweep()).toBe(true)
    expect(replica.sweep()).toBe(false)
  })

  test('is not put off or hastened by those who tell another age later', async () => {
    const { replica, clock } = open()
    const first = await createAuthor(alice).snapshot({ step: 1 })
    await give(replica, [first], 20_000)
    await give(replica, [first], 0)
    await give(replica, [first], 59_000)
    await give(replica, [first], 1e12)
    expect(replica.ageMs(replica.chain('record', alice.peerId)!)).toBe(20_000)
    await clock.advance(40_000)
    expect(shown(replica)).toEqual({})
  })

  test('is final: a third peer cannot bring the record back, its author can', async () => {
    const { replica, clock } = open()
    const author = createAuthor(alice)
    const chain = [await author.snapshot({ step: 1 }), await author.update({ step: 2 })]
    await give(replica, chain)
    await clock.advance(TTL_MS)
    replica.sweep()
    expect((await give(replica, chain, 0)).rejected).toEqual(['expired', 'expired'])
    expect(shown(replica)).toEqual({})
    // It goes on where it stopped: no snapshot needed.
    const next = await author.update({ step: 3 })
    expect((await give(replica, [next])).accepted).toEqual([next])
    expect(shown(replica)).toEqual({ [alice.peerId]: { step: 3 } })
    await clock.advance(TTL_MS)
    expect(replica.sweep()).toBe(true)
  })

  test('meets records that are too old on arrival, but not their younger successors', async () => {
    const { replica } = open()
    const author = createAuthor(alice)
    const first = await author.snapshot({ step: 1 })
    expect((await give(replica, [first], TTL_MS)).rejected).toEqual(['expired'])
    const second = await author.update({ step: 2 })
    expect((await give(replica, [first, second], 10)).accepted).toEqual([first, second])
  })

  test('does not concern the board', async () => {
    const { replica, clock } = open()
    const note = await createAuthor(alice, { document: 'board' }).snapshot({ a: [1, 2] })
    await give(replica, [note], 10 * TTL_MS)
    await clock.advance(10 * TTL_MS)
    expect(replica.chains('board').map(({ author }) => author)).toEqual([alice.peerId])
  })
})

describe('a full table', () => {
  test('takes nobody new while all are alive; then the longest dead gives way', async () => {
    const { replica, clock } = open()
    for (let index = 0; index < LIMITS.runPeers; index++) {
      const peer = await identityOf(`peer ${index}`)
      await give(replica, [await createAuthor(peer).snapshot({ step: index })], index === 7 ? 9 : 0)
    }
    const late = await createAuthor(alice).snapshot({ step: 1 })
    expect((await give(replica, [late])).rejected).toEqual(['full'])
    const lively = createAuthor(await identityOf('peer 0'), { epoch: 2 })
    expect((await give(replica, [await lively.snapshot({ step: 5 })])).accepted.length).toBe(1)
    await clock.advance(TTL_MS)
    expect((await give(replica, [late])).accepted).toEqual([late])
    const oldest = (await identityOf('peer 7')).peerId
    expect(replica.chain('record', oldest)).toBeUndefined()
    expect(headOf(replica.chain('record', alice.peerId)!)).toEqual(late)
  })
})
