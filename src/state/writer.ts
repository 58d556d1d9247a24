/**
 * Makes the envelopes of this node's own documents.
 *
 * A life of the node never continues the numbers of another: its first envelope of a document opens a new epoch,
 * higher than every one it knows of. The epoch is stored before it is used, and its step is random, so that even a
 * node whose store was lost, rolled back or copied will hardly sign two histories under one number.
 */
import { decode, encode } from '@ipld/dag-cbor'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import type { Identity } from '../net/identity.ts'
import type { Random } from '../random.ts'
import type { RecordStore } from '../store/record-store.ts'
import { clientIdOf, snapshotOf, updateOf, type Values } from './document.ts'
import {
  DOCUMENTS,
  envelopeLimit,
  epochSchema,
  signEnvelope,
  type DocumentName,
  type Envelope,
} from './envelope.ts'
import { headOf, type Chain, type Replica } from './replica.ts'

/** More than the fields of an envelope take beside its update, in bytes. */
const OVERHEAD_BYTES = 512
const EPOCH_STEP = 1 << 20

export interface WriterOptions {
  run: string
  identity: Identity
  records: RecordStore
  random: Random
  replica: Replica
}

export interface Writer {
  /**
   * The next envelope, which turns the own document into `values`: an update, or a snapshot once the updates weigh as
   * much as one. Throws `limit_exceeded` when the values are too large. Calls must not overlap.
   */
  next(document: DocumentName, values: Values): Promise<Envelope>
}

export function createWriter({ run, identity, records, random, replica }: WriterOptions): Writer {
  const author = identity.peerId
  const epochs: Partial<Record<DocumentName, number>> = {}
  const epochKey = `state/${run}/epoch`

  async function openEpoch(document: DocumentName): Promise<number> {
    const stored = await records.get(epochKey)
    const last = stored === undefined ? 0 : readEpoch(stored)
    const seen = DOCUMENTS.map((name) => replica.chain(name, author)?.envelopes[0]?.epoch ?? 0)
    const epoch = Math.max(last, ...seen) + 1 + random.integer(EPOCH_STEP)
    await records.put(epochKey, encode(epoch))
    epochs[document] = epoch
    return epoch
  }

  return {
    async next(document, values) {
      const chain = replica.chain(document, author)
      const head = chain === undefined ? undefined : headOf(chain)
      const continues = head !== undefined && head.epoch === epochs[document]
      const epoch = continues ? head.epoch : await openEpoch(document)
      const clientId = clientIdOf(author, epoch)
      const snapshot = snapshotOf(clientId, values)
      // Also where an update will do: a document must never outgrow what a snapshot can carry.
      const bytes = snapshot.length + OVERHEAD_BYTES
      if (bytes > envelopeLimit(document)) {
        throw new ShoalError(
          'limit_exceeded',
          `the ${document} takes ${bytes} bytes, more than ${envelopeLimit(document)}; shorten it`,
        )
      }
      const update =
        continues && chain !== undefined ? updateFor(chain, clientId, values) : undefined
      return signEnvelope(identity, {
        run,
        author,
        document,
        epoch,
        sequence: continues ? head.sequence + 1 : 1,
        previous: continues ? head.hash : null,
        kind: update === undefined ? 'snapshot' : 'update',
        update: update ?? snapshot,
      })
    },
  }
}

function readEpoch(stored: Uint8Array): number {
  try {
    return epochSchema.parse(decode(stored))
  } catch {
    // What makes lives distinct is the random step; the stored epoch only orders them.
    return 0
  }
}

/** Undefined when a snapshot serves better: the chain stays within twice the size of its snapshot. */
function updateFor(chain: Chain, clientId: number, values: Values): Uint8Array | undefined {
  const [snapshot, ...updates] = chain.envelopes
  if (snapshot === undefined || updates.length >= LIMITS.envelopeChain) return undefined
  const update = updateOf(
    clientId,
    chain.envelopes.map((envelope) => envelope.update),
    values,
  )
  const bytes = updates.reduce((sum, envelope) => sum + envelope.bytes.length, update.length)
  return bytes + OVERHEAD_BYTES > snapshot.bytes.length ? undefined : update
}
