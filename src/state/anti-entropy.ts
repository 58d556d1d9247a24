/** What two replicas have to tell each other, computed from the heads of their chains. Pure. */
import { bytesToHex, hexToBytes } from '@noble/hashes/utils.js'
import { LIMITS } from '../limits.ts'
import type { Envelope } from './envelope.ts'
import type { WireHead } from './messages.ts'
import { headOf, type Chain, type Replica } from './replica.ts'

/** The tail of a chain, to be sent; `madeAtMs` is that of the last envelope. */
export interface Part {
  readonly envelopes: readonly Envelope[]
  readonly madeAtMs: number
}

export interface Difference {
  /** What the other side lacks. */
  parts: Part[]
  /** Own heads (null where there is none) of what this side lacks. */
  wanted: WireHead[]
}

/** Heads of all that may be passed on. */
export function headsOf(replica: Replica): WireHead[] {
  return [...replica.chains('record'), ...replica.chains('board')].map(toWireHead)
}

export function differenceOf(replica: Replica, theirs: readonly WireHead[]): Difference {
  const difference: Difference = { parts: [], wanted: [] }
  const theirHeads = new Map(theirs.map((head) => [keyOf(head), head]))
  for (const chain of [...replica.chains('record'), ...replica.chains('board')]) {
    const key = keyOf(chain)
    const relation = relate(chain, theirHeads.get(key)?.last ?? null)
    if (relation.part !== undefined) difference.parts.push(relation.part)
    if (relation.wanted) difference.wanted.push(toWireHead(chain))
    theirHeads.delete(key)
  }
  for (const { author, document } of theirHeads.values()) {
    if (!replica.proofs().has(author)) difference.wanted.push({ author, document, last: null })
  }
  return difference
}

/** What is here beyond the given heads. */
export function partsBeyond(replica: Replica, heads: readonly WireHead[]): Part[] {
  return heads.flatMap((head) => {
    const chain = replica.chain(head.document, head.author)
    if (chain === undefined || !replica.isFresh(chain)) return []
    return relate(chain, head.last).part ?? []
  })
}

/** As many whole parts from the front as one message may carry. */
export function fittingParts(parts: readonly Part[]): Part[] {
  let count = 0
  let bytes = 0
  const end = parts.findIndex(({ envelopes }) => {
    count += envelopes.length
    bytes += envelopes.reduce((sum, envelope) => sum + envelope.bytes.length, 0)
    return count > LIMITS.envelopesPerMessage || bytes > LIMITS.envelopeBytesPerMessage
  })
  return end === -1 ? [...parts] : parts.slice(0, end)
}

export function keyOf({ document, author }: Pick<WireHead, 'document' | 'author'>): string {
  return `${document}/${author}`
}

function toWireHead(chain: Chain): WireHead {
  const { epoch, sequence, hash } = headOf(chain)
  const last = { epoch, sequence, hash: hexToBytes(hash) }
  return { author: chain.author, document: chain.document, last }
}

function relate(chain: Chain, last: WireHead['last']): { part?: Part; wanted: boolean } {
  const { envelopes, madeAtMs } = chain
  const whole = { envelopes, madeAtMs }
  if (last === null) return { part: whole, wanted: false }
  const head = headOf(chain)
  const ahead = head.epoch - last.epoch || head.sequence - last.sequence
  if (ahead < 0) return { wanted: true }
  const hash = bytesToHex(last.hash)
  // Equal numbers with other hashes: both sides need the other's chain to see the equivocation.
  if (ahead === 0) return hash === head.hash ? { wanted: false } : { part: whole, wanted: true }
  const known = envelopes.findIndex((envelope) => envelope.hash === hash)
  return { part: { envelopes: envelopes.slice(known + 1), madeAtMs }, wanted: false }
}
