/**
 * One rate for many connections, shared fairly between their owners: who waits gets a turn of the same size after the
 * other, however many connections he has. A token bucket (RFC 2697) in front of a round robin.
 */
import type { Clock } from '../clock.ts'

/** Unused rate that may be caught up. */
const BURST_MS = 100
/** The rate of about this time makes a turn: shorter ones cost more than they carry. */
const TURN_MS = 20
const TURN_BYTES = { least: 1500, most: 64 << 10 }

export interface RateShare {
  /** Shares of one owner have their turns together. */
  owner: string
  /** Bytes of `wanted` that may pass now. When fewer, `onTurn` is called as soon as more may. */
  take(wanted: number): number
  /** Bytes that were taken and did not pass. */
  giveBack(bytes: number): void
  /** Counts bytes that have passed already. False when no more should; then `onTurn` is called as soon as they may. */
  spend(bytes: number): boolean
  close(): void
}

export interface FairRate {
  open(owner: string, onTurn: () => void): RateShare
  /** Nothing waits any more. */
  stop(): void
}

export function createFairRate(bytesPerSecond: number, clock: Clock): FairRate {
  const bucket = new Bucket(bytesPerSecond, clock)
  return {
    open: (owner, onTurn) => new Share(bucket, owner, onTurn),
    stop: () => bucket.stop(),
  }
}

class Bucket {
  readonly #bytesPerSecond: number
  readonly #clock: Clock
  readonly #turnBytes: number
  readonly #burstBytes: number
  readonly #stopping = new AbortController()
  /** By owner in the order of their turns, each with his shares in theirs. */
  readonly #waiting = new Map<string, Share[]>()
  /** Below 0 when more has passed than should have. */
  #tokens: number
  #countedAtMs: number
  #isServing = false

  constructor(bytesPerSecond: number, clock: Clock) {
    const turn = (bytesPerSecond * TURN_MS) / 1000
    this.#bytesPerSecond = bytesPerSecond
    this.#clock = clock
    this.#turnBytes = Math.max(TURN_BYTES.least, Math.min(TURN_BYTES.most, turn))
    this.#burstBytes = Math.max(this.#turnBytes, (bytesPerSecond * BURST_MS) / 1000)
    this.#tokens = this.#burstBytes
    this.#countedAtMs = clock.now()
  }

  get isStopped(): boolean {
    return this.#stopping.signal.aborted
  }

  /** Whole tokens, at most `wanted`; none while others wait. */
  draw(wanted: number): number {
    this.#refill()
    if (this.#waiting.size > 0 || this.#tokens < 1) return 0
    const drawn = Math.min(wanted, Math.floor(this.#tokens))
    this.#tokens -= drawn
    return drawn
  }

  /** Also of a negative number. */
  put(tokens: number): void {
    this.#tokens = Math.min(this.#burstBytes, this.#tokens + tokens)
  }

  hasMore(): boolean {
    this.#refill()
    return this.#waiting.size === 0 && this.#tokens > 0
  }

  wait(share: Share): void {
    const shares = this.#waiting.get(share.owner)
    if (shares === undefined) this.#waiting.set(share.owner, [share])
    else shares.push(share)
    if (!this.#isServing) void this.#serve()
  }

  stop(): void {
    this.#stopping.abort()
    const shares = [...this.#waiting.values()].flat()
    this.#waiting.clear()
    for (const share of shares) share.startTurn(0)
  }

  /** Gives turns until nobody waits. */
  async #serve(): Promise<void> {
    this.#isServing = true
    while (this.#waiting.size > 0) {
      this.#refill()
      const missing = this.#turnBytes - this.#tokens
      if (missing <= 0) this.#serveNext()
      else {
        const waitMs = Math.max(1, Math.ceil((missing * 1000) / this.#bytesPerSecond))
        await this.#clock.sleep(waitMs, this.#stopping.signal).catch(() => {})
      }
    }
    this.#isServing = false
  }

  #serveNext(): void {
    const [next] = this.#waiting
    if (next === undefined) return
    const [owner, shares] = next
    const share = shares.shift()
    // Behind all others who wait.
    this.#waiting.delete(owner)
    if (shares.length > 0) this.#waiting.set(owner, shares)
    if (share === undefined || share.isClosed) return
    this.#tokens -= this.#turnBytes
    share.startTurn(this.#turnBytes)
  }

  #refill(): void {
    const now = this.#clock.now()
    this.put(((now - this.#countedAtMs) * this.#bytesPerSecond) / 1000)
    this.#countedAtMs = now
  }
}

class Share implements RateShare {
  owner: string
  isClosed = false
  readonly #bucket: Bucket
  readonly #onTurn: () => void
  /** What is left of its turn. */
  #credit = 0
  #isWaiting = false

  constructor(bucket: Bucket, owner: string, onTurn: () => void) {
    this.#bucket = bucket
    this.owner = owner
    this.#onTurn = onTurn
  }

  take(wanted: number): number {
    if (this.#bucket.isStopped) return wanted
    if (this.#credit < wanted) this.#credit += this.#bucket.draw(wanted - this.#credit)
    const taken = Math.min(wanted, Math.floor(this.#credit))
    this.#credit -= taken
    if (taken < wanted) this.#wait()
    return taken
  }

  giveBack(bytes: number): void {
    this.#credit += bytes
  }

  spend(bytes: number): boolean {
    this.#credit -= bytes
    if (this.#credit < 0) {
      this.#bucket.put(this.#credit)
      this.#credit = 0
    }
    if (this.#credit > 0 || this.#bucket.isStopped || this.#bucket.hasMore()) return true
    this.#wait()
    return false
  }

  close(): void {
    this.isClosed = true
    this.#bucket.put(this.#credit)
    this.#credit = 0
  }

  startTurn(bytes: number): void {
    this.#isWaiting = false
    this.#credit += bytes
    this.#onTurn()
  }

  #wait(): void {
    if (this.#isWaiting || this.isClosed) return
    this.#isWaiting = true
    this.#bucket.wait(this)
  }
}
