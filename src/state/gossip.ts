/**
 * How the shared state of one run spreads among connected members.
 *
 * - Own envelopes are pushed at once to all connected members; what is newly learned is pushed onward once, to a few.
 * - Whatever that misses is repaired by anti-entropy: on connect and every few seconds with one random member,
 *   two nodes compare the heads of their chains and send each other what is missing.
 * - A member is a peer that has spoken for the run. One that answers `run_unknown` is left alone for a while.
 * - Nothing that arrives can throw out of here: it is taken over, or dropped and counted.
 */
import { abortReason, raceSignal, withDeadline, type Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { Network } from '../net/network.ts'
import type { Random } from '../random.ts'
import {
  differenceOf,
  fittingParts,
  headsOf,
  keyOf,
  partsBeyond,
  type Part,
} from './anti-entropy.ts'
import type { Envelope } from './envelope.ts'
import {
  decodeSyncReply,
  encodePush,
  encodeSyncRequest,
  PUSH_METHOD,
  SYNC_METHOD,
  type Push,
  type SyncReply,
  type SyncRequest,
  type WirePart,
  type WireProof,
} from './messages.ts'
import type { Offences } from './offences.ts'
import { createPushQueue, type Parcel, type PushQueue } from './push-queue.ts'
import { OFFENCES, type Proof, type Rejection, type Replica } from './replica.ts'

/** How long a peer that does not know the run is not asked again. */
const UNKNOWN_RUN_RETRY_MS = 60_000

/** What the state service needs of the network. */
export type StateNetwork = Pick<
  Network,
  'peerId' | 'rpc' | 'connectedPeers' | 'onConnect' | 'onDisconnect'
>

export interface News {
  envelopes: Envelope[]
  proofs: Proof[]
}

export interface GossipOptions {
  run: string
  network: StateNetwork
  replica: Replica
  offences: Offences
  clock: Clock
  random: Random
  logger: Logger
  metrics: Metrics
  syncIntervalMs: number
  /** Told what was taken over from others, before it is pushed onward; with nothing when records have expired. */
  learned: (news: News) => void
}

export class Gossip {
  readonly #options: GossipOptions
  readonly #members = new Set<string>()
  /** Peers that do not know the run, and when they may be asked again. */
  readonly #strangers = new Map<string, number>()
  readonly #queue: PushQueue
  readonly #syncing = new Map<string, Promise<void>>()
  readonly #due = new Set<string>()
  readonly #tasks = new Set<Promise<void>>()
  readonly #loop = new AbortController()
  readonly #calls = new AbortController()
  #removeListeners: (() => void)[] = []

  constructor(options: GossipOptions) {
    this.#options = options
    this.#queue = createPushQueue(
      (peer, parcel) => this.#send(peer, parcel, this.#calls.signal),
      (peer, error) => this.#failed(peer, error),
      (task) => this.#background(task),
    )
  }

  start(): void {
    const { network } = this.#options
    this.#removeListeners = [
      network.onConnect((peer) => this.#schedule(peer)),
      network.onDisconnect((peer) => {
        this.#members.delete(peer)
        this.#strangers.delete(peer)
        this.#queue.drop(peer)
        this.#due.delete(peer)
      }),
    ]
    this.#background(this.#repeat())
  }

  /** Ends all exchanges; what waits to be pushed is given a moment to leave first. */
  async close(): Promise<void> {
    for (const remove of this.#removeListeners) remove()
    this.#loop.abort(new ShoalError('aborted', 'the shared state was closed'))
    this.#due.clear()
    await withDeadline(
      this.#options.clock,
      DEADLINES.stateDrainMs,
      'pushing the last envelopes',
      undefined,
      async (signal) => {
        const cut = (): void => this.#calls.abort(abortReason(signal))
        signal.addEventListener('abort', cut, { once: true })
        while (this.#tasks.size > 0) await Promise.all(this.#tasks)
      },
    )
    this.#calls.abort(new ShoalError('aborted', 'the shared state was closed'))
  }

  /** Pushes own envelopes to all connected members. */
  push(part: Part): void {
    for (const peer of this.#connectedMembers())
      this.#queue.add(peer, { parts: [part], proofs: [] })
  }

  async receivePush(peer: string, message: Push): Promise<void> {
    this.#welcome(peer)
    await this.#take(peer, message.parts, message.proofs)
  }

  receiveSync(peer: string, request: SyncRequest): SyncReply {
    this.#welcome(peer)
    const { replica } = this.#options
    const difference = differenceOf(replica, request.heads)
    const parts = fittingParts(difference.parts)
    const wanted = difference.wanted.slice(0, LIMITS.envelopesPerMessage)
    const proven = new Set(request.proven)
    const proofs = [...replica.proofs()].filter(([author]) => !proven.has(author))
    return {
      parts: parts.map((part) => this.#toWire(part)),
      proofs: proofs.slice(0, LIMITS.proofsPerMessage).map(([, proof]) => proofBytes(proof)),
      wanted,
      more:
        parts.length < difference.parts.length ||
        wanted.length < difference.wanted.length ||
        proofs.length > LIMITS.proofsPerMessage,
    }
  }

  /** One whole exchange: afterwards both sides know what either knew. One at a time with each peer. */
  async sync(peer: string, outer?: AbortSignal): Promise<void> {
    for (let running = this.#syncing.get(peer); running; running = this.#syncing.get(peer)) {
      await (outer === undefined ? running : raceSignal(running, outer))
    }
    const signal =
      outer === undefined ? this.#calls.signal : AbortSignal.any([outer, this.#calls.signal])
    const exchange = this.#exchange(peer, signal)
    this.#syncing.set(
      peer,
      exchange.catch(() => {}),
    )
    try {
      await exchange
    } finally {
      this.#syncing.delete(peer)
    }
  }

  async #exchange(peer: string, signal: AbortSignal): Promise<void> {
    const { run, network, replica } = this.#options
    const served = new Set<string>()
    for (let messages = 0; messages < LIMITS.syncMessages; messages++) {
      const revision = replica.revision()
      const request = { run, heads: headsOf(replica), proven: [...replica.proofs().keys()] }
      const bytes = await network.rpc.call(peer, SYNC_METHOD, encodeSyncRequest(request), {
        signal,
      })
      const reply = decodeSyncReply(bytes)
      this.#welcome(peer)
      await this.#take(peer, reply.parts, reply.proofs)
      const wanted = reply.wanted.filter((head) => !served.has(keyOf(head)))
      for (const head of wanted) served.add(keyOf(head))
      await this.#sendParts(peer, partsBeyond(replica, wanted), signal)
      const progress = replica.revision() > revision || wanted.length > 0
      if (!reply.more || !progress) return
    }
  }

  async #sendParts(peer: string, parts: readonly Part[], signal: AbortSignal): Promise<void> {
    let rest = parts
    while (rest.length > 0) {
      const batch = fittingParts(rest)
      if (batch.length === 0) return
      rest = rest.slice(batch.length)
      await this.#send(peer, { parts: batch, proofs: [] }, signal)
    }
  }

  async #send(peer: string, { parts, proofs }: Parcel, signal: AbortSignal): Promise<void> {
    const message: Push = {
      run: this.#options.run,
      parts: parts.map((part) => this.#toWire(part)),
      proofs: proofs.map((proof) => proofBytes(proof)),
    }
    await this.#options.network.rpc.call(peer, PUSH_METHOD, encodePush(message), { signal })
  }

  async #take(
    peer: string,
    parts: readonly WirePart[],
    wireProofs: readonly WireProof[],
  ): Promise<void> {
    const { replica } = this.#options
    const rejected: Rejection[] = []
    const news: News = { envelopes: [], proofs: [] }
    const forward: Part[] = []
    for (const { envelopes, ageMs } of parts) {
      const receipt = await replica.receive(envelopes, ageMs)
      rejected.push(...receipt.rejected)
      news.envelopes.push(...receipt.accepted)
      news.proofs.push(...receipt.proofs)
      if (receipt.accepted.length > 0) {
        forward.push({ envelopes: receipt.accepted, madeAtMs: this.#options.clock.now() - ageMs })
      }
      if (receipt.gap) this.#schedule(peer)
    }
    for (const wire of wireProofs) {
      const proof = await replica.receiveProof(wire)
      if (typeof proof === 'string') rejected.push(proof)
      else news.proofs.push(proof)
    }
    this.#count(peer, news, rejected)
    if (news.envelopes.length + news.proofs.length === 0) return
    this.#options.learned(news)
    this.#forward(peer, forward, news.proofs)
  }

  #count(peer: string, news: News, rejected: readonly Rejection[]): void {
    const { metrics, offences, logger } = this.#options
    metrics.add('envelopes_accepted_total', news.envelopes.length)
    for (const reason of rejected) metrics.add('envelopes_rejected_total', 1, reason)
    const offending = rejected.filter((reason) => OFFENCES.some((offence) => offence === reason))
    offences.add(peer, offending.length)
    if (offending.length > 0) logger.debug('envelopes_rejected', { peer, reasons: offending })
    for (const [{ author }] of news.proofs) logger.warn('equivocation', { author })
  }

  #forward(source: string, parts: readonly Part[], proofs: Proof[]): void {
    const { random } = this.#options
    const others = this.#connectedMembers().filter((peer) => peer !== source)
    for (let chosen = 0; chosen < LIMITS.forwardPeers && others.length > 0; chosen++) {
      const [peer] = others.splice(random.integer(others.length), 1)
      if (peer === undefined) return
      // Its author has it already.
      const foreign = parts.filter(({ envelopes }) => envelopes[0]?.author !== peer)
      this.#queue.add(peer, { parts: foreign, proofs })
    }
  }

  /** Syncs with `peer` soon; a few at once, each peer once. */
  #schedule(peer: string | undefined): void {
    if (peer === undefined || this.#loop.signal.aborted || this.#syncing.has(peer)) return
    if ((this.#strangers.get(peer) ?? 0) > this.#options.clock.now()) return
    if (this.#options.offences.ignored(peer)) return
    if (this.#syncing.size < LIMITS.syncsInFlight) this.#background(this.#syncNow(peer))
    else this.#due.add(peer)
  }

  async #syncNow(peer: string): Promise<void> {
    try {
      await withDeadline(
        this.#options.clock,
        DEADLINES.stateSyncMs,
        'an exchange of shared state',
        this.#loop.signal,
        (signal) => this.sync(peer, signal),
      )
    } catch (error) {
      this.#failed(peer, error)
    } finally {
      const [next] = this.#due
      if (next !== undefined) {
        this.#due.delete(next)
        this.#schedule(next)
      }
    }
  }

  #failed(peer: string, error: unknown): void {
    const { clock, logger, offences } = this.#options
    const { code, message } = asFault(error)
    const stranger = code === 'run_unknown' || code === 'refused' || code === 'version_unsupported'
    if (stranger) {
      this.#members.delete(peer)
      const connected = this.#options.network.connectedPeers().includes(peer)
      if (connected) this.#strangers.set(peer, clock.now() + UNKNOWN_RUN_RETRY_MS)
    }
    if (code === 'message_invalid') offences.add(peer, 1)
    if (!stranger && code !== 'aborted') {
      logger.debug('state_exchange_failed', { peer, code, message })
    }
  }

  async #repeat(): Promise<void> {
    const { clock, random, replica, syncIntervalMs, learned } = this.#options
    const { signal } = this.#loop
    try {
      for (;;) {
        // Uneven steps, so that the nodes of a swarm do not move in lockstep.
        await clock.sleep(syncIntervalMs * (0.75 + random.uniform() / 2), signal)
        if (replica.sweep()) learned({ envelopes: [], proofs: [] })
        const members = this.#connectedMembers()
        this.#schedule(members[random.integer(members.length)])
        const unasked = this.#options.network
          .connectedPeers()
          .filter((peer) => !this.#members.has(peer))
          .filter((peer) => (this.#strangers.get(peer) ?? 0) <= clock.now())
        this.#schedule(unasked[random.integer(unasked.length)])
      }
    } catch (error) {
      if (!signal.aborted) throw error
    }
  }

  #connectedMembers(): string[] {
    const { network, offences } = this.#options
    return network
      .connectedPeers()
      .filter((peer) => this.#members.has(peer) && !offences.ignored(peer))
  }

  /** `peer` has spoken for the run. A new member gets the own record, which it may have missed. */
  #welcome(peer: string): void {
    this.#strangers.delete(peer)
    if (this.#members.has(peer)) return
    if (!this.#options.network.connectedPeers().includes(peer)) return
    this.#members.add(peer)
    const { replica, network } = this.#options
    const own = replica.chain('record', network.peerId)
    if (own !== undefined) this.#queue.add(peer, { parts: [own], proofs: [] })
  }

  #toWire({ envelopes, madeAtMs }: Part): WirePart {
    const ageMs = Math.max(0, Math.floor(this.#options.clock.now() - madeAtMs))
    return { ageMs, envelopes: envelopes.map(({ bytes }) => bytes) }
  }

  #background(task: Promise<void>): void {
    const logged = task
      .catch((error: unknown) => {
        this.#options.logger.error('gossip_failed', { message: asFault(error).message })
      })
      .finally(() => this.#tasks.delete(logged))
    this.#tasks.add(logged)
  }
}

function proofBytes([first, second]: Proof): WireProof {
  return [first.bytes, second.bytes]
}
