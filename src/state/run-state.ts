/** The shared state of one run on one node: own documents out, others' in, kept over a restart. */
import { decode, encode } from '@ipld/dag-cbor'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import type { Logger } from '../log.ts'
import type { Identity } from '../net/identity.ts'
import type { RecordOperation, RecordStore } from '../store/record-store.ts'
import { boardOf, withEntry } from './board.ts'
import type { Values } from './document.ts'
import { bytesSchema, type DocumentName } from './envelope.ts'
import { Gossip, type GossipOptions, type News } from './gossip.ts'
import type { Push, SyncReply, SyncRequest } from './messages.ts'
import { peerRecordSchema, type PeerRecord } from './record.ts'
import { Replica, type Chain } from './replica.ts'
import type { BoardValue, Member, SharedState } from './shared-state.ts'
import { createWriter, type Writer } from './writer.ts'

const storedChainSchema = z.array(bytesSchema)
const storedProofSchema = z.tuple([bytesSchema, bytesSchema])

export interface RunStateOptions extends Omit<GossipOptions, 'replica' | 'learned'> {
  admins: readonly string[]
  identity: Identity
  records: RecordStore
  ttlMs: number
  heartbeatMs: number
  /** Called when it begins to close and peers must no longer be answered for it. */
  closed: () => void
}

export class RunState implements SharedState {
  readonly #run: string
  readonly #admins: readonly string[]
  readonly #self: string
  readonly #records: RecordStore
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #heartbeatMs: number
  readonly #closed: () => void
  readonly #replica: Replica
  readonly #gossip: Gossip
  readonly #writer: Writer
  readonly #listeners = new Set<() => void>()
  readonly #parsed = new WeakMap<Chain, PeerRecord | null>()
  readonly #closing = new AbortController()
  #own: { record: PeerRecord; atMs: number } | undefined
  /** When the own record was last published, or that was last tried. */
  #attemptedMs: number
  #heartbeat: Promise<void> = Promise.resolve()
  /** Own writes and everything stored, one after another. */
  #turn: Promise<void> = Promise.resolve()

  constructor(options: RunStateOptions) {
    this.#run = options.run
    this.#admins = options.admins
    this.#self = options.identity.peerId
    this.#records = options.records
    this.#clock = options.clock
    this.#logger = options.logger
    this.#heartbeatMs = options.heartbeatMs
    this.#closed = options.closed
    this.#attemptedMs = options.clock.now()
    this.#replica = new Replica(options)
    const replica = this.#replica
    this.#writer = createWriter({ ...options, replica })
    this.#gossip = new Gossip({ ...options, replica, learned: (news) => this.#learned(news) })
  }

  /** Loads what an earlier life has stored, then takes part. */
  async start(): Promise<void> {
    for (const [key, value] of await this.#records.list(`${this.#prefix()}/board/`)) {
      const chain = parseStored(storedChainSchema, value)
      const receipt = await this.#replica.receive(chain ?? [], 0)
      if (chain === undefined || receipt.rejected.length > 0) {
        this.#logger.warn('stored_state_corrupt', { key, reasons: receipt.rejected })
      }
    }
    for (const [key, value] of await this.#records.list(`${this.#prefix()}/proof/`)) {
      const proof = parseStored(storedProofSchema, value)
      if (proof === undefined) this.#logger.warn('stored_state_corrupt', { key })
      else await this.#replica.receiveProof(proof)
    }
    this.#gossip.start()
    this.#heartbeat = this.#beat()
  }

  async publish(record: PeerRecord): Promise<void> {
    const parsed = peerRecordSchema.safeParse(record)
    if (!parsed.success) {
      throw new ShoalError('internal', 'a record to be published does not meet its schema', {
        cause: parsed.error,
      })
    }
    this.#closing.signal.throwIfAborted()
    await this.#inTurn(() => this.#publishNow(parsed.data))
  }

  members(): Member[] {
    const members = this.#replica.chains('record').flatMap((chain) => {
      const record = chain.author === this.#self ? null : this.#recordOf(chain)
      return record === null
        ? []
        : [{ peer: chain.author, record, ageMs: this.#replica.ageMs(chain) }]
    })
    if (this.#own !== undefined) {
      const { record, atMs } = this.#own
      members.push({ peer: this.#self, record, ageMs: Math.floor(this.#clock.now() - atMs) })
    }
    return members.sort((a, b) => (a.peer < b.peer ? -1 : 1))
  }

  board(): Record<string, BoardValue> {
    return boardOf(this.#replica.chains('board'))
  }

  async writeBoard(key: string, value: BoardValue | undefined): Promise<void> {
    if (!this.#admins.includes(this.#self)) {
      throw new ShoalError(
        'forbidden',
        `this peer may not write the board of run ${this.#run}; its admins are ${this.#admins.join(', ')}`,
      )
    }
    this.#closing.signal.throwIfAborted()
    await this.#inTurn(async () => {
      const values = withEntry(this.#replica.chains('board'), this.#self, key, value)
      await this.#write('board', values)
    })
    this.#notify()
  }

  equivocators(): string[] {
    return [...this.#replica.proofs().keys()].sort()
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async sync(peer: string, signal?: AbortSignal): Promise<void> {
    await this.#gossip.sync(peer, signal)
  }

  receivePush(peer: string, push: Push): Promise<void> {
    return this.#gossip.receivePush(peer, push)
  }

  receiveSync(peer: string, request: SyncRequest): SyncReply {
    return this.#gossip.receiveSync(peer, request)
  }

  async close(): Promise<void> {
    this.#closed()
    this.#closing.abort(
      new ShoalError('aborted', `the shared state of run ${this.#run} was closed`),
    )
    await this.#heartbeat
    await this.#turn
    await this.#gossip.close()
    await this.#turn
  }

  #prefix(): string {
    return `state/${this.#run}`
  }

  #recordOf(chain: Chain): PeerRecord | null {
    const known = this.#parsed.get(chain)
    if (known !== undefined) return known
    const record = peerRecordSchema.safeParse(Object.fromEntries(chain.values)).data ?? null
    this.#parsed.set(chain, record)
    return record
  }

  async #publishNow(record: PeerRecord): Promise<void> {
    this.#attemptedMs = this.#clock.now()
    await this.#write('record', new Map(Object.entries(record)))
    this.#own = { record, atMs: this.#clock.now() }
    this.#notify()
  }

  async #write(document: DocumentName, values: Values): Promise<void> {
    const envelope = await this.#writer.next(document, values)
    if (document === 'board') await this.#storeBoard([envelope.bytes], envelope.kind)
    if (!this.#replica.adopt(envelope)) {
      throw new ShoalError(
        'conflict',
        `run ${this.#run} knows this identity from elsewhere (${this.#replica.proofs().has(this.#self) ? 'and has excluded it' : 'in a later life'}); give each node an identity.key of its own`,
      )
    }
    this.#gossip.push({ envelopes: [envelope], madeAtMs: this.#clock.now() })
  }

  /** Stored before it is pushed: a crash in between costs nothing, the other order would fork the chain. */
  async #storeBoard(next: Uint8Array[], kind: 'snapshot' | 'update'): Promise<void> {
    const current = this.#replica.chain('board', this.#self)?.envelopes ?? []
    const before = kind === 'snapshot' ? [] : current.map(({ bytes }) => bytes)
    await this.#records.put(`${this.#prefix()}/board/${this.#self}`, encode([...before, ...next]))
  }

  #learned({ envelopes, proofs }: News): void {
    const authors = new Set(
      envelopes.filter(({ document }) => document === 'board').map(({ author }) => author),
    )
    if (authors.size + proofs.length > 0) {
      this.#inTurn(() => this.#store([...authors], proofs)).catch((error: unknown) => {
        this.#logger.warn('state_not_stored', { message: asFault(error).message })
      })
    }
    this.#notify()
  }

  async #store(boardAuthors: string[], proofs: News['proofs']): Promise<void> {
    const operations: RecordOperation[] = []
    for (const author of boardAuthors) {
      const chain = this.#replica.chain('board', author)
      if (chain === undefined) continue
      const value = encode(chain.envelopes.map(({ bytes }) => bytes))
      operations.push({ put: `${this.#prefix()}/board/${author}`, value })
    }
    for (const [first, second] of proofs) {
      const value = encode([first.bytes, second.bytes])
      operations.push({ put: `${this.#prefix()}/proof/${first.author}`, value })
      operations.push({ delete: `${this.#prefix()}/board/${first.author}` })
    }
    await this.#records.batch(operations)
  }

  /** Publishes the own record again before it expires elsewhere. */
  async #beat(): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      try {
        const dueMs = this.#attemptedMs + this.#heartbeatMs
        await this.#clock.sleep(Math.max(0, dueMs - this.#clock.now()), signal)
        if (this.#attemptedMs + this.#heartbeatMs > this.#clock.now()) continue
        this.#attemptedMs = this.#clock.now()
        await this.#inTurn(async () => {
          if (this.#own !== undefined) await this.#publishNow(this.#own.record)
        })
      } catch (error) {
        if (signal.aborted) return
        this.#logger.warn('heartbeat_failed', { message: asFault(error).message })
      }
    }
  }

  /** One write at a time; a failed one does not hold up the next. */
  #inTurn(task: () => Promise<void>): Promise<void> {
    const result = this.#turn.then(task)
    this.#turn = result.catch(() => {})
    return result
  }

  #notify(): void {
    for (const listener of this.#listeners) {
      try {
        listener()
      } catch (error) {
        this.#logger.error('listener_failed', { message: asFault(error).message })
      }
    }
  }
}

function parseStored<T>(schema: z.ZodType<T>, bytes: Uint8Array): T | undefined {
  try {
    return schema.parse(decode(bytes))
  } catch {
    return undefined
  }
}
