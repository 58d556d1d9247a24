/**
 * One rate shared fairly: bytes of many owners leave at `bytesPerSecond` together, and who has bytes waiting gets the same
 * share as everybody else who has, however much he pushes (deficit round robin, Shreedhar and Varghese 1995).
 */
import type { Uint8ArrayList } from 'uint8arraylist'
import type { Clock } from '../clock.ts'

/** Bytes an owner may send in one turn. */
const TURN_BYTES = 64 << 10
/** Unused rate that may be caught up: longer and a burst would delay the others. */
const BURST_MS = 50

export interface FairQueue {
  /** `forward` is called with the bytes in order, in pieces. */
  push(owner: string, bytes: Uint8ArrayList, forward: (piece: Uint8ArrayList) => void): void
  stop(): void
}

interface Item {
  bytes: Uint8ArrayList
  forward: (piece: Uint8ArrayList) => void
}

export function createFairQueue(bytesPerSecond: number, clock: Clock): FairQueue {
  const owners = new Map<string, Item[]>()
  const stopping = new AbortController()
  const burstBytes = Math.max(TURN_BYTES, (bytesPerSecond * BURST_MS) / 1000)
  let allowance = burstBytes
  let countedAt = clock.now()
  let isRunning = false

  /** Waits until the rate allows another turn. */
  async function untilAllowed(): Promise<void> {
    for (;;) {
      const now = clock.now()
      allowance = Math.min(burstBytes, allowance + ((now - countedAt) * bytesPerSecond) / 1000)
      countedAt = now
      if (allowance > 0) return
      await clock.sleep(Math.max(1, (-allowance * 1000) / bytesPerSecond), stopping.signal)
    }
  }

  async function run(): Promise<void> {
    try {
      for (;;) {
        const [next] = owners
        if (next === undefined) return
        await untilAllowed()
        const [owner, items] = next
        allowance -= takeTurn(items)
        // Not before: what is forwarded may make the owner push more.
        owners.delete(owner)
        // Behind all others who wait.
        if (items.length > 0) owners.set(owner, items)
      }
    } finally {
      isRunning = false
    }
  }

  return {
    push(owner, bytes, forward) {
      const items = owners.get(owner) ?? []
      items.push({ bytes, forward })
      owners.set(owner, items)
      if (isRunning) return
      isRunning = true
      run().catch(() => owners.clear())
    },
    stop() {
      stopping.abort()
      owners.clear()
    },
  }
}

/** Bytes forwarded. */
function takeTurn(items: Item[]): number {
  let taken = 0
  while (taken < TURN_BYTES) {
    const [item] = items
    if (item === undefined) break
    const piece = item.bytes.sublist(0, Math.min(item.bytes.byteLength, TURN_BYTES - taken))
    item.bytes.consume(piece.byteLength)
    if (item.bytes.byteLength === 0) items.shift()
    taken += piece.byteLength
    item.forward(piece)
  }
  return taken
}
