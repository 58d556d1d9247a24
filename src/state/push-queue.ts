/** What waits to be pushed to each peer. One push per peer is on its way at a time; what comes meanwhile joins the next. */
import { LIMITS } from '../limits.ts'
import { fittingParts, type Part } from './anti-entropy.ts'
import type { Proof } from './replica.ts'

export interface Parcel {
  parts: readonly Part[]
  proofs: readonly Proof[]
}

interface Queue {
  parts: Part[]
  proofs: Proof[]
  sending: boolean
}

export interface PushQueue {
  /** Queues what there is room for; the rest is dropped, because anti-entropy repairs it. */
  add(peer: string, parcel: Parcel): void
  /** Forgets what waits for a peer that is gone. */
  drop(peer: string): void
}

/** `send` resolves when the peer has acknowledged; `background` observes the promise of a queue's sending. */
export function createPushQueue(
  send: (peer: string, parcel: Parcel) => Promise<void>,
  failed: (peer: string, error: unknown) => void,
  background: (task: Promise<void>) => void,
): PushQueue {
  const queues = new Map<string, Queue>()

  async function drain(peer: string, queue: Queue): Promise<void> {
    queue.sending = true
    try {
      while (queue.parts.length + queue.proofs.length > 0 && queues.get(peer) === queue) {
        const parts = queue.parts.splice(0, fittingParts(queue.parts).length)
        const proofs = queue.proofs.splice(0, LIMITS.proofsPerMessage)
        await send(peer, { parts, proofs })
      }
    } catch (error) {
      queue.parts = []
      queue.proofs = []
      failed(peer, error)
    } finally {
      queue.sending = false
    }
  }

  return {
    add(peer, { parts, proofs }) {
      const queue = queues.get(peer) ?? { parts: [], proofs: [], sending: false }
      queues.set(peer, queue)
      for (const part of parts) {
        if (sizeOf(queue) + part.envelopes.length <= LIMITS.envelopesQueued) queue.parts.push(part)
      }
      for (const proof of proofs) {
        if (sizeOf(queue) + proof.length <= LIMITS.envelopesQueued) queue.proofs.push(proof)
      }
      if (!queue.sending) background(drain(peer, queue))
    },
    drop(peer) {
      queues.delete(peer)
    },
  }
}

function sizeOf({ parts, proofs }: Queue): number {
  return parts.reduce((sum, part) => sum + part.envelopes.length, 2 * proofs.length)
}
