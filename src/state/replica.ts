/**
 * What one node knows of a run's shared state: for each author and document the chain from its newest snapshot to
 * its head, verified. Guarantees:
 * - An envelope is taken over only when its author signed it, it extends or supersedes what is here, and its update
 *   touches nothing but its author's document. Replicas with equal heads hold equal values.
 * - An author of whom two histories are known is excluded for good; the two envelopes are kept as proof.
 * - A record expires `ttlMs` after it was made, as far as this node can know: now minus the age that the first
 *   deliverer told. Later tellings do not count: with the least age a peer could keep the dead alive, with the
 *   greatest it could bury the living, and neither can take back what was learned first.
 * - An expired chain is neither shown nor passed on, but stays as its own tombstone: it does not return through a
 *   third peer, and its author goes on where it stopped.
 * - All is bounded: authors, envelopes and bytes per chain, proofs.
 */
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import { clientIdOf, valuesOf, type Values } from './document.ts'
import {
  conflict,
  envelopeLimit,
  parseEnvelope,
  verifyEnvelope,
  type DocumentName,
  type Envelope,
} from './envelope.ts'

export interface Chain {
  readonly author: string
  readonly document: DocumentName
  /** From the newest snapshot to the head; never empty. */
  readonly envelopes: readonly Envelope[]
  readonly values: Values
  /** When the head was made, by the clock of this node. */
  readonly madeAtMs: number
}

/** Two envelopes of one author that cannot be of one history. */
export type Proof = readonly [Envelope, Envelope]

/** Faults of whoever sent the envelope: an honest peer passes on only what it has verified. */
export const OFFENCES = [
  'oversized',
  'malformed',
  'other_run',
  'signature',
  'not_admin',
  'update_invalid',
  'chain_too_long',
  'proof_invalid',
] as const

/** The others happen among honest peers too: old news, newer software, authors excluded meanwhile, a full table. */
export type Rejection =
  | (typeof OFFENCES)[number]
  | 'version_unsupported'
  | 'stale'
  | 'expired'
  | 'excluded'
  | 'full'
  | 'equivocation'

type Outcome = 'accepted' | 'known' | 'gap' | Rejection | { proof: Proof }
type Standing = 'next' | 'known' | 'gap' | Rejection | { conflictsWith: Envelope }

export interface Receipt {
  accepted: Envelope[]
  rejected: Rejection[]
  /** Of authors excluded by this delivery. */
  proofs: Proof[]
  /** A predecessor is missing: ask the sender for its chain. */
  gap: boolean
}

export interface ReplicaOptions {
  run: string
  admins: readonly string[]
  ttlMs: number
  clock: Clock
}

export class Replica {
  readonly #run: string
  readonly #admins: readonly string[]
  readonly #ttlMs: number
  readonly #clock: Clock
  readonly #chains: Record<DocumentName, Map<string, Chain>> = {
    record: new Map(),
    board: new Map(),
  }
  readonly #proofs = new Map<string, Proof>()
  /** Authors whose expiry has been told by `sweep`. */
  readonly #buried = new Set<string>()
  #revision = 0

  constructor({ run, admins, ttlMs, clock }: ReplicaOptions) {
    this.#run = run
    this.#admins = admins
    this.#ttlMs = ttlMs
    this.#clock = clock
  }

  /** Takes over what is sound of the envelopes of one chain, in order; `ageMs` is that of the last of them. */
  async receive(wire: readonly Uint8Array[], ageMs: number): Promise<Receipt> {
    const receipt: Receipt = { accepted: [], rejected: [], proofs: [], gap: false }
    const madeAtMs = this.#clock.now() - ageMs
    for (const bytes of wire) {
      const envelope = parseEnvelope(bytes)
      if (typeof envelope === 'string') {
        receipt.rejected.push(envelope)
        continue
      }
      const outcome = await this.#receiveOne(envelope, madeAtMs)
      if (typeof outcome === 'object') {
        receipt.proofs.push(outcome.proof)
        receipt.rejected.push('equivocation')
      } else if (outcome === 'accepted') receipt.accepted.push(envelope)
      else if (outcome === 'gap') receipt.gap = true
      else if (outcome !== 'known') receipt.rejected.push(outcome)
    }
    return receipt
  }

  /** Takes over an envelope of this node's own making; false when a later life of this author is known. */
  adopt(envelope: Envelope): boolean {
    return (
      this.#standingOf(envelope) === 'next' &&
      this.#apply(envelope, this.#clock.now()) === 'accepted'
    )
  }

  /** Excludes the author when the two envelopes prove that it has two histories. */
  async receiveProof(wire: readonly [Uint8Array, Uint8Array]): Promise<Rejection | Proof> {
    const first = parseEnvelope(wire[0])
    const second = parseEnvelope(wire[1])
    if (typeof first === 'string' || typeof second === 'string') return 'proof_invalid'
    if (first.run !== this.#run || !conflict(first, second)) return 'proof_invalid'
    if (this.#proofs.has(first.author)) return 'excluded'
    if (!(await verifyEnvelope(first))) return 'proof_invalid'
    if (!(await verifyEnvelope(second))) return 'proof_invalid'
    this.#exclude(first.author, [first, second])
    return [first, second]
  }

  chain(document: DocumentName, author: string): Chain | undefined {
    return this.#chains[document].get(author)
  }

  /** All that have not expired. */
  chains(document: DocumentName): Chain[] {
    return [...this.#chains[document].values()].filter((chain) => this.isFresh(chain))
  }

  proofs(): ReadonlyMap<string, Proof> {
    return this.#proofs
  }

  /** Counts what was taken over. */
  revision(): number {
    return this.#revision
  }

  ageMs(chain: Chain): number {
    return Math.max(0, Math.floor(this.#clock.now() - chain.madeAtMs))
  }

  /** Whether a record has expired since the last call. */
  sweep(): boolean {
    const before = this.#buried.size
    for (const chain of this.#chains.record.values()) {
      if (!this.isFresh(chain)) this.#buried.add(chain.author)
    }
    return this.#buried.size > before
  }

  /** Whether it may still be shown and passed on. */
  isFresh(chain: Chain): boolean {
    return chain.document === 'board' || this.#clock.now() - chain.madeAtMs < this.#ttlMs
  }

  async #receiveOne(envelope: Envelope, madeAtMs: number): Promise<Outcome> {
    if (envelope.run !== this.#run) return 'other_run'
    const expired = this.#clock.now() - madeAtMs >= this.#ttlMs
    if (envelope.document === 'record' && expired) return 'expired'
    const cheap = this.#standingOf(envelope)
    if (cheap !== 'next' && typeof cheap === 'string') return cheap
    if (!(await verifyEnvelope(envelope))) return 'signature'
    // Another delivery may have come first while the signature was verified.
    const standing = this.#standingOf(envelope)
    if (standing === 'next') return this.#apply(envelope, madeAtMs)
    if (typeof standing === 'string') return standing
    const proof: Proof = [standing.conflictsWith, envelope]
    this.#exclude(envelope.author, proof)
    return { proof }
  }

  /** Where a well-formed envelope stands to what is here; no signature has been looked at. */
  #standingOf(envelope: Envelope): Standing {
    const { author, document } = envelope
    if (this.#proofs.has(author)) return 'excluded'
    if (document === 'board' && !this.#admins.includes(author)) return 'not_admin'
    const chain = this.#chains[document].get(author)
    if (chain === undefined) return envelope.kind === 'update' ? 'gap' : 'next'
    const standing = standingInChain(envelope, chain)
    return standing === 'known' && !this.isFresh(chain) ? 'expired' : standing
  }

  /** Replaces the chain by one with `envelope` at its head, unless its author breaks a rule. */
  #apply(envelope: Envelope, madeAtMs: number): Outcome {
    const { author, document, epoch } = envelope
    const chains = this.#chains[document]
    const current = chains.get(author)
    const envelopes = [
      ...(envelope.kind === 'update' && current !== undefined ? current.envelopes : []),
      envelope,
    ]
    if (!fitsChain(envelopes)) return 'chain_too_long'
    if (current === undefined && !this.#makeRoom(chains)) return 'full'
    try {
      const updates = envelopes.map(({ update }) => update)
      const values = valuesOf(clientIdOf(author, epoch), updates)
      chains.set(author, { author, document, envelopes, values, madeAtMs })
      this.#buried.delete(author)
      this.#revision++
      return 'accepted'
    } catch {
      return 'update_invalid'
    }
  }

  /** Of a full table the chain that expired first goes; false when all are fresh. */
  #makeRoom(chains: Map<string, Chain>): boolean {
    if (chains.size < LIMITS.runPeers) return true
    const oldest = [...chains.values()]
      .filter((chain) => !this.isFresh(chain))
      .reduce<Chain | undefined>(
        (first, chain) => (first && first.madeAtMs <= chain.madeAtMs ? first : chain),
        undefined,
      )
    if (oldest === undefined) return false
    this.#buried.delete(oldest.author)
    return chains.delete(oldest.author)
  }

  #exclude(author: string, proof: Proof): void {
    this.#revision++
    this.#proofs.set(author, proof)
    this.#chains.record.delete(author)
    this.#chains.board.delete(author)
    this.#buried.delete(author)
    // A Map keeps the order of insertion, so the first is the oldest.
    for (const oldest of this.#proofs.keys()) {
      if (this.#proofs.size <= LIMITS.equivocationProofs) break
      this.#proofs.delete(oldest)
    }
  }
}

export function headOf(chain: Chain): Envelope {
  const head = chain.envelopes.at(-1)
  if (head === undefined) throw new Error('a chain is never empty')
  return head
}

/** Whether `envelopes`, from a snapshot on, are few and small enough to be kept and served. */
export function fitsChain(envelopes: readonly Envelope[]): boolean {
  const [first] = envelopes
  if (first === undefined || envelopes.length > LIMITS.envelopeChain + 1) return false
  const bytes = envelopes.reduce((sum, envelope) => sum + envelope.bytes.length, 0)
  return bytes <= 2 * envelopeLimit(first.document)
}

function standingInChain(envelope: Envelope, chain: Chain): Standing {
  const head = headOf(chain)
  if (envelope.epoch < head.epoch) return 'stale'
  if (envelope.epoch > head.epoch) return envelope.kind === 'snapshot' ? 'next' : 'gap'
  const twin = chain.envelopes.find(({ sequence }) => sequence === envelope.sequence)
  if (twin?.hash === envelope.hash) return 'known'
  const opposed = chain.envelopes.find((other) => conflict(other, envelope))
  if (opposed !== undefined) return { conflictsWith: opposed }
  if (envelope.sequence < head.sequence) return 'stale'
  if (envelope.sequence === head.sequence + 1) return 'next'
  return envelope.kind === 'snapshot' ? 'next' : 'gap'
}
