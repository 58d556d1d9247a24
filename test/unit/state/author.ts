/** Somebody who signs envelopes by hand, honest or not. */
import type { Identity } from '../../../src/net/identity.ts'
import { clientIdOf, snapshotOf, updateOf, type Values } from '../../../src/state/document.ts'
import { signEnvelope, type DocumentName, type Envelope } from '../../../src/state/envelope.ts'
import { RUN } from './swarm.ts'

export interface AuthorOptions {
  epoch?: number
  document?: DocumentName
  run?: string
}

export interface Author {
  /** Begins the chain anew with all of `values`. */
  snapshot(values: Record<string, unknown>): Promise<Envelope>
  update(values: Record<string, unknown>): Promise<Envelope>
  /** An envelope with the next number and any update. */
  crafted(kind: 'snapshot' | 'update', update: Uint8Array): Promise<Envelope>
  /** A second history that goes on from here. */
  fork(): Author
}

export function createAuthor(
  identity: Identity,
  { epoch = 1, document = 'record', run = RUN }: AuthorOptions = {},
  before: { head?: Envelope; updates: Uint8Array[] } = { updates: [] },
): Author {
  let { head, updates } = before
  const clientId = clientIdOf(identity.peerId, epoch)
  const valuesIn = (values: Record<string, unknown>): Values => new Map(Object.entries(values))

  async function crafted(kind: 'snapshot' | 'update', update: Uint8Array): Promise<Envelope> {
    const author = identity.peerId
    const sequence = (head?.sequence ?? 0) + 1
    const previous = head?.hash ?? null
    const content = { run, author, document, epoch, sequence, previous, kind, update }
    head = await signEnvelope(identity, content)
    updates = kind === 'snapshot' ? [update] : [...updates, update]
    return head
  }

  return {
    crafted,
    snapshot: (values) => crafted('snapshot', snapshotOf(clientId, valuesIn(values))),
    update: (values) => crafted('update', updateOf(clientId, updates, valuesIn(values))),
    fork: () =>
      createAuthor(identity, { epoch, document, run }, { ...(head && { head }), updates }),
  }
}
