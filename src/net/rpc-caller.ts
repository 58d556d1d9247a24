/** The asking end of an RPC stream: requests go out, replies and faults come back in any order. */
import { abortReason } from '../clock.ts'
import type { Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { createFrameChannel } from './frame-channel.ts'
import type { FrameChannel, FrameChannelOptions } from './frame-channel.ts'
import type { Frame } from './frame.ts'
import type { RpcCall } from './rpc-call.ts'
import { decodeFault } from './rpc-fault.ts'

export interface RpcCaller {
  /**
   * Settles the call: with its reply, the handler's fault, `peer_unreachable` when the stream ends first, or
   * `limit_exceeded` when too many wait. What the other side would not take yet waits here.
   */
  submit(call: RpcCall): void
  /** Ends when nothing is unanswered any more. */
  retire(): void
  /** Since when something has been unanswered and nothing at all has come; undefined when nothing is unanswered. */
  silentSince(): number | undefined
  end(fault: ShoalError): void
}

export interface RpcCallerOptions extends Omit<FrameChannelOptions, 'onFrame' | 'destination'> {
  /** Called when the stream has ended, before `onLost`. */
  onEnd: (caller: RpcCaller) => void
  /** Gets each call that was under way then. */
  onLost: (call: RpcCall, fault: ShoalError) => void
}

export function createRpcCaller(options: RpcCallerOptions): RpcCaller {
  return new StreamCaller(options)
}

class StreamCaller implements RpcCaller {
  readonly #channel: FrameChannel
  readonly #onLost: RpcCallerOptions['onLost']
  /** Sent, or about to be. */
  readonly #pending = new Map<number, RpcCall>()
  /** Sent and given up by this side; their replies may still come, and until then the other side works on them. */
  readonly #abandoned = new Map<number, RpcCall>()
  readonly #waiting = new Set<RpcCall>()
  /** Of all that are sent and unanswered. */
  #requestBytes = 0
  #lastId = 0
  #isRetired = false
  #heardAtMs = 0
  readonly #clock: Clock

  constructor(options: RpcCallerOptions) {
    this.#onLost = options.onLost
    this.#clock = options.clock
    this.#channel = createFrameChannel({
      ...options,
      onFrame: (frame) => this.#receive(frame),
      destination: (id, payloadBytes) => {
        const into = this.#pending.get(id)?.into
        return into !== undefined && into.length >= payloadBytes ? into : undefined
      },
    })
    this.#channel.ended.addEventListener('abort', () => {
      options.onEnd(this)
      this.#lose(asFault(abortReason(this.#channel.ended)))
    })
  }

  end(fault: ShoalError): void {
    this.#channel.end(fault)
  }

  submit(call: RpcCall): void {
    if (call.isSettled) return
    call.onAbandoned = this.#abandon
    const { ended } = this.#channel
    if (ended.aborted) this.#onLost(call, asFault(abortReason(ended)))
    else if (this.#waiting.size === 0 && this.#hasRoom(call)) this.#send(call)
    else if (this.#waiting.size < LIMITS.rpcCallsWaiting) this.#waiting.add(call)
    else {
      const message = `${this.#waiting.size} calls to the peer wait to be sent`
      call.reject(new ShoalError('limit_exceeded', message))
    }
  }

  retire(): void {
    this.#isRetired = true
    this.#endIfIdle()
  }

  silentSince(): number | undefined {
    return this.#pending.size === 0 ? undefined : this.#heardAtMs
  }

  #receive({ id, kind, payload }: Frame): void {
    this.#heardAtMs = this.#clock.now()
    const call = this.#pending.get(id) ?? this.#abandoned.get(id)
    if (kind === 'request' || call === undefined) {
      this.#channel.drop('unexpected', `the peer sent a ${kind} that nobody asked for`)
      return
    }
    if (!this.#pending.delete(id)) this.#abandoned.delete(id)
    this.#requestBytes -= call.payload.length
    if (kind === 'reply') call.resolve(payload)
    else call.reject(decodeFault(payload))
    if (this.#waiting.size > 0) this.#sendWaiting()
    else this.#endIfIdle()
  }

  #lose(fault: ShoalError): void {
    const lost = [...this.#pending.values(), ...this.#waiting]
    this.#pending.clear()
    this.#waiting.clear()
    for (const call of lost) if (!call.isSettled) this.#onLost(call, fault)
  }

  readonly #abandon = (call: RpcCall): void => {
    if (this.#waiting.delete(call)) return
    this.#channel.leaveDestination(call.id)
    this.#pending.delete(call.id)
    this.#abandoned.set(call.id, call)
    const { size } = this.#abandoned
    if (size < LIMITS.rpcRequestsInFlight) this.#endIfIdle()
    else this.end(new ShoalError('peer_unreachable', `the peer left ${size} requests unanswered`))
  }

  /** The other side counts in the same way, and refuses what is more. */
  #hasRoom({ payload }: RpcCall): boolean {
    return (
      this.#pending.size + this.#abandoned.size < LIMITS.rpcRequestsInFlight &&
      this.#requestBytes + payload.length <= LIMITS.rpcBytesInFlight
    )
  }

  #send(call: RpcCall): void {
    this.#lastId = (this.#lastId + 1) >>> 0
    call.id = this.#lastId
    try {
      this.#channel.send(call)
    } catch (thrown) {
      call.reject(asFault(thrown))
      return
    }
    if (this.#pending.size === 0) this.#heardAtMs = this.#clock.now()
    this.#pending.set(call.id, call)
    this.#requestBytes += call.payload.length
  }

  #sendWaiting(): void {
    for (const call of this.#waiting) {
      if (!this.#hasRoom(call)) return
      this.#waiting.delete(call)
      this.#send(call)
    }
  }

  #endIfIdle(): void {
    if (!this.#isRetired || this.#pending.size > 0 || this.#waiting.size > 0) return
    this.end(new ShoalError('peer_unreachable', 'the peer is called on another connection now'))
  }
}
