import { encode } from '@ipld/dag-cbor'
import { describe, expect, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import { createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { settle } from '../../manual-clock.ts'
import { createAuthor } from './author.ts'
import { identityOf, pushTo, record, rejectedOf, RUN, stepsOf, useTestSwarm } from './swarm.ts'

const start = useTestSwarm()

describe('a restart', () => {
  test('never continues the numbers of the life before, and supersedes it at once', async () => {
    const { member, connectAll, network } = start()
    const ben = await member('ben')
    const anna = await member('anna')
    connectAll([anna, ben])
    await settle()
    for (let step = 0; step < 5; step++) await anna.state.publish(record({ outerStep: step }))
    await settle()
    await anna.service.close()
    network.disconnect(anna.peer, ben.peer)

    const again = await member('anna', { records: anna.records, life: 1 })
    network.connect(anna.peer, ben.peer)
    await settle()
    // The record of the life before is not this life's.
    expect(again.state.members().map(({ peer }) => peer)).not.toContain(anna.peer)
    await again.state.publish(record({ outerStep: 1 }))
    await settle()
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 1 })
    expect(ben.state.equivocators()).toEqual([])
  })

  test.each([
    ['lost', () => createMemoryRecordStore()],
    ['rolled back to a backup', (backup: RecordStore) => backup],
  ])('with its store %s is no equivocation', async (_, restore) => {
    const { member, network, clock } = start({ admins: ['anna'] })
    const ben = await member('ben')
    const anna = await member('anna')
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.state.publish(record({ outerStep: 1 }))
    await anna.state.writeBoard('note', 'first')
    const backup = createMemoryRecordStore()
    for (const [key, value] of await anna.records.list('')) await backup.put(key, value)
    await anna.service.close()
    network.disconnect(anna.peer, ben.peer)
    // A life of which the backup knows nothing.
    const second = await member('anna', { records: anna.records, life: 1 })
    network.connect(anna.peer, ben.peer)
    await settle()
    await second.state.publish(record({ outerStep: 2 }))
    await second.state.writeBoard('note', 'second')
    await settle()
    await second.service.close()
    network.disconnect(anna.peer, ben.peer)

    const third = await member('anna', { records: restore(backup), life: 2 })
    await third.state.publish(record({ outerStep: 3 }))
    network.connect(anna.peer, ben.peer)
    await clock.advance(20_000)
    expect(stepsOf(ben.state)).toEqual({ [anna.peer]: 3 })
    expect(third.state.board()).toEqual({ note: 'second' })
    await third.state.writeBoard('more', 1)
    await settle()
    expect(ben.state.board()).toEqual({ more: 1, note: 'second' })
    expect(ben.state.equivocators()).toEqual([])
  })

  test('finds the board and the proofs again, with nobody there to tell', async () => {
    const { member, network } = start({ admins: ['anna', 'cleo'] })
    const anna = await member('anna')
    const ben = await member('ben')
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.state.writeBoard('paused', true)
    await anna.state.writeBoard('note', 'hello')
    const liar = await identityOf('liar')
    const twins = [
      await createAuthor(liar).snapshot({ ...record() }),
      await createAuthor(liar).snapshot({ ...record({ outerStep: 1 }) }),
    ]
    await pushTo(
      network,
      ben.peer,
      twins.map(({ bytes }) => bytes),
    )
    expect(ben.state.equivocators()).toEqual([liar.peerId])
    await ben.service.close()
    network.disconnect(anna.peer, ben.peer)
    const again = await member('ben', { records: ben.records, life: 1 })
    expect(again.state.board()).toEqual({ note: 'hello', paused: true })
    expect(again.state.equivocators()).toEqual([liar.peerId])
  })

  test('damaged stored state is left out, not fatal', async () => {
    const { member } = start({ admins: ['anna'] })
    const records = createMemoryRecordStore()
    const { peerId } = await identityOf('anna')
    await records.put(`state/${RUN}/board/${peerId}`, Uint8Array.of(255))
    await records.put(`state/${RUN}/proof/${peerId}`, encode([1, 2]))
    const anna = await member('anna', { records })
    expect(anna.state.board()).toEqual({})
    await anna.state.writeBoard('note', 1)
    expect(anna.state.board()).toEqual({ note: 1 })
  })

  test('an envelope of the board is stored before anyone hears of it', async () => {
    const { member, network } = start({ admins: ['anna'] })
    const memory = createMemoryRecordStore()
    let full = false
    const records: RecordStore = {
      ...memory,
      async put(key, value) {
        if (full) throw new ShoalError('storage_failed', 'the disk is full')
        await memory.put(key, value)
      },
    }
    const anna = await member('anna', { records })
    const ben = await member('ben')
    network.connect(anna.peer, ben.peer)
    await settle()
    await anna.state.writeBoard('note', 1)
    full = true
    await expect(anna.state.writeBoard('note', 2)).rejects.toMatchObject({ code: 'storage_failed' })
    await settle()
    expect(ben.state.board()).toEqual({ note: 1 })
    full = false
    await anna.state.writeBoard('note', 3)
    await settle()
    expect(ben.state.board()).toEqual({ note: 3 })
    expect(ben.state.equivocators()).toEqual([])
  })
})

describe('the board', () => {
  test('is written by admins only, and read by all', async () => {
    const { member, network } = start({ admins: ['anna', 'cleo'] })
    const anna = await member('anna')
    const ben = await member('ben')
    const cleo = await member('cleo')
    network.connect(anna.peer, ben.peer)
    network.connect(ben.peer, cleo.peer)
    await settle()
    await anna.state.writeBoard('paused', true)
    await settle()
    await cleo.state.writeBoard('paused', false)
    await cleo.state.writeBoard('note', 'by cleo')
    await settle()
    for (const { state } of [anna, ben, cleo]) {
      expect(state.board()).toEqual({ note: 'by cleo', paused: false })
    }
    await anna.state.writeBoard('note', undefined)
    await settle()
    for (const { state } of [anna, ben, cleo]) expect(state.board()).toEqual({ paused: false })
    await expect(ben.state.writeBoard('paused', true)).rejects.toMatchObject({ code: 'forbidden' })
    await expect(anna.state.writeBoard('a b', 1)).rejects.toMatchObject({ code: 'body_invalid' })
  })

  test('of a peer that is no admin is dropped and counted', async () => {
    const { member, network } = start({ admins: ['anna'] })
    const ben = await member('ben')
    const mallory = await identityOf('mallory')
    const forged = await createAuthor(mallory, { document: 'board' }).snapshot({
      paused: [1, true],
    })
    await pushTo(network, ben.peer, [forged.bytes])
    expect(ben.state.board()).toEqual({})
    expect(rejectedOf(ben, 'not_admin')).toBe(1)
  })

  test('takes long chains and large values within its envelope', async () => {
    const { member, network } = start({ admins: ['anna'] })
    const anna = await member('anna')
    const ben = await member('ben')
    network.connect(anna.peer, ben.peer)
    await settle()
    for (let round = 0; round < 100; round++) {
      await anna.state.writeBoard(`key${round % 7}`, `${round} ${'x'.repeat(1000)}`)
    }
    await settle()
    expect(ben.state.board()).toEqual(anna.state.board())
    expect(Object.keys(ben.state.board()).length).toBe(7)
    let written = 7
    await expect(
      (async () => {
        for (; ; written++) await anna.state.writeBoard(`more${written}`, 'x'.repeat(2000))
      })(),
    ).rejects.toMatchObject({ code: 'limit_exceeded' })
    await anna.state.writeBoard('key0', undefined)
    await anna.state.writeBoard('last', 1)
    await settle()
    expect(ben.state.board()).toEqual(anna.state.board())
    expect(ben.state.board()['last']).toBe(1)
  })
})
