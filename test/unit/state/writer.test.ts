import { describe, expect, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import { LIMITS } from '../../../src/limits.ts'
import type { Random } from '../../../src/random.ts'
import type { Envelope } from '../../../src/state/envelope.ts'
import { fitsChain, Replica } from '../../../src/state/replica.ts'
import { createWriter, type Writer } from '../../../src/state/writer.ts'
import { createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { createManualClock } from '../../manual-clock.ts'
import { identityOf, RUN } from './swarm.ts'

const identity = await identityOf('writer')
/** The least luck a writer can have: every life takes the smallest step. */
const unlucky: Random = { uniform: () => 0, integer: () => 0, normal: () => 0 }

function startLife(records: RecordStore): { writer: Writer; replica: Replica } {
  const options = { run: RUN, admins: [identity.peerId], ttlMs: 60_000, clock: createManualClock() }
  const replica = new Replica(options)
  return {
    replica,
    writer: createWriter({ run: RUN, identity, records, random: unlucky, replica }),
  }
}

const values = (step: number, text = ''): Map<string, unknown> =>
  new Map<string, unknown>([
    ['step', step],
    ['text', text],
  ])

describe('writer', () => {
  test('every life has a higher epoch than the one before, for either document', async () => {
    const records = createMemoryRecordStore()
    const epochs: number[] = []
    for (let life = 0; life < 4; life++) {
      const { writer, replica } = startLife(records)
      for (const document of ['record', 'board'] as const) {
        const envelope = await writer.next(document, values(life))
        expect(envelope).toMatchObject({ sequence: 1, previous: null, kind: 'snapshot' })
        expect(replica.adopt(envelope)).toBe(true)
        epochs.push(envelope.epoch)
        expect((await writer.next(document, values(life + 1))).epoch).toBe(envelope.epoch)
      }
    }
    expect(epochs).toEqual([1, 2, 3, 4, 5, 6, 7, 8])
  })

  test('an epoch that cannot be stored is not used', async () => {
    const records: RecordStore = {
      ...createMemoryRecordStore(),
      put: async () => {
        throw new ShoalError('storage_failed', 'the disk is full')
      },
    }
    const { writer } = startLife(records)
    await expect(writer.next('record', values(1))).rejects.toMatchObject({ code: 'storage_failed' })
  })

  test('a damaged stored epoch is no obstacle', async () => {
    const records = createMemoryRecordStore()
    await records.put(`state/${RUN}/epoch`, Uint8Array.of(255))
    const { writer } = startLife(records)
    expect((await writer.next('record', values(1))).epoch).toBe(1)
  })

  test('an epoch of this author seen elsewhere is left behind', async () => {
    const { writer, replica } = startLife(createMemoryRecordStore())
    const elsewhere = startLife(createMemoryRecordStore())
    for (const life of [1, 2, 3]) {
      const other = createWriter({
        run: RUN,
        identity,
        records: createMemoryRecordStore(),
        random: { ...unlucky, integer: () => 100 * life },
        replica: elsewhere.replica,
      })
      const envelope = await other.next('record', values(life))
      expect(elsewhere.replica.adopt(envelope)).toBe(true)
      await replica.receive([envelope.bytes], 0)
    }
    const next = await writer.next('record', values(9))
    expect(next.epoch).toBe(replica.chain('record', identity.peerId)!.envelopes[0]!.epoch + 1)
    expect(replica.adopt(next)).toBe(true)
  })

  test('keeps its chain short, light, and linked', async () => {
    const { writer, replica } = startLife(createMemoryRecordStore())
    let last: Envelope | undefined
    const kinds = new Set<string>()
    for (let step = 0; step < 200; step++) {
      const envelope = await writer.next('board', values(step, 'x'.repeat((step % 9) * 1000)))
      expect(envelope.sequence).toBe(step + 1)
      expect(envelope.previous).toBe(last?.hash ?? null)
      expect(replica.adopt(envelope)).toBe(true)
      const chain = replica.chain('board', identity.peerId)!
      expect(fitsChain(chain.envelopes)).toBe(true)
      expect(Object.fromEntries(chain.values)['step']).toBe(step)
      kinds.add(envelope.kind)
      last = envelope
    }
    expect([...kinds].sort()).toEqual(['snapshot', 'update'])
  })

  test('makes a snapshot after the longest chain', async () => {
    const { writer, replica } = startLife(createMemoryRecordStore())
    const kinds: string[] = []
    for (let step = 0; step < 2 * LIMITS.envelopeChain + 3; step++) {
      const envelope = await writer.next('board', values(step, 'x'.repeat(30_000)))
      expect(replica.adopt(envelope)).toBe(true)
      kinds.push(envelope.kind)
    }
    const snapshots = kinds.flatMap((kind, index) => (kind === 'snapshot' ? [index] : []))
    expect(snapshots).toEqual([0, LIMITS.envelopeChain + 1, 2 * LIMITS.envelopeChain + 2])
  })

  test('refuses values that no snapshot could carry, and goes on after', async () => {
    const { writer, replica } = startLife(createMemoryRecordStore())
    replica.adopt(await writer.next('record', values(1)))
    const large = values(2, 'x'.repeat(LIMITS.recordEnvelopeBytes))
    await expect(writer.next('record', large)).rejects.toMatchObject({ code: 'limit_exceeded' })
    const next = await writer.next('record', values(3))
    expect(next.sequence).toBe(2)
    expect(replica.adopt(next)).toBe(true)
  })
})
