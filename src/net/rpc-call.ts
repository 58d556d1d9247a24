/** One call to a peer from when it is made until it is settled, on whatever stream it goes. */
import { abortReason } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import type { Expiring } from './expiry.ts'
import type { OutgoingFrame } from './frame-writer.ts'
import type { Lane } from './network.ts'

export interface CallRequest {
  peer: string
  lane: Lane
  method: string
  payload: Uint8Array
  deadlineMs: number
  expiresAtMs: number
  signal: AbortSignal | undefined
  repeatable: boolean
  into: Uint8Array | undefined
}

/** Its own request frame, and its place among the deadlines: at a hundred thousand a second every object counts. */
export class RpcCall implements OutgoingFrame, Expiring {
  readonly kind = 'request'
  readonly method: string
  readonly payload: Uint8Array
  readonly peer: string
  readonly lane: Lane
  readonly expiresAtMs: number
  readonly repeatable: boolean
  readonly into: Uint8Array | undefined
  /** Set by the stream that it goes on. */
  id = 0
  /** Some stream may have brought it to the other side. */
  isHanded = false
  /** Streams that broke under it. */
  losses = 0
  isSettled = false
  /** Called when it is settled by this side: by its deadline or its signal. */
  onAbandoned: ((call: RpcCall) => void) | undefined
  readonly #deadlineMs: number
  readonly #signal: AbortSignal | undefined
  readonly #onSettled: (call: RpcCall) => void
  #resolve!: (reply: Uint8Array) => void
  #reject!: (fault: Error) => void
  #onAbort: (() => void) | undefined

  constructor(request: CallRequest, onSettled: (call: RpcCall) => void) {
    this.method = request.method
    this.payload = request.payload
    this.peer = request.peer
    this.lane = request.lane
    this.expiresAtMs = request.expiresAtMs
    this.repeatable = request.repeatable
    this.into = request.into
    this.#deadlineMs = request.deadlineMs
    this.#signal = request.signal
    this.#onSettled = onSettled
  }

  /** Once. Rejects at once when the signal has fired already. */
  settlement(): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
      const signal = this.#signal
      if (signal === undefined) return
      this.#onAbort = () => this.#abandon(abortReason(signal))
      if (signal.aborted) this.#onAbort()
      else signal.addEventListener('abort', this.#onAbort)
    })
  }

  resolve(reply: Uint8Array): void {
    if (this.#settle()) this.#resolve(reply)
  }

  reject(fault: Error): void {
    if (this.#settle()) this.#reject(fault)
  }

  expire(): void {
    const cause = `"${this.method}" of peer ${this.peer}`
    this.#abandon(
      new ShoalError('timeout', `${cause} took longer than ${Math.round(this.#deadlineMs)} ms`),
    )
  }

  #abandon(fault: Error): void {
    if (this.isSettled) return
    this.reject(fault)
    this.onAbandoned?.(this)
  }

  #settle(): boolean {
    if (this.isSettled) return false
    this.isSettled = true
    if (this.#onAbort !== undefined) this.#signal?.removeEventListener('abort', this.#onAbort)
    this.#onSettled(this)
    return true
  }
}
