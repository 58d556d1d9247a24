/** What passes over one connection: counted for the node's metrics and for the link it makes, and held to the caps. */
import type { Connection, MultiaddrConnection } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import type { Metrics } from '../metrics.ts'
import { isDirect } from './addresses.ts'
import type { FairRate, RateShare } from './fair-rate.ts'

/** Rates follow what happened within about this time. */
const RATE_WINDOW_MS = 5_000

/** Of all connections together; undefined: as fast as they can. */
export interface Caps {
  upload?: FairRate | undefined
  download?: FairRate | undefined
}

export interface WireCounts {
  bytesSent: number
  bytesReceived: number
  sentBytesPerSecond: number
  receivedBytesPerSecond: number
}

/** Of a connection that is not one over bytes, such as WebRTC's. */
export const NO_COUNTS: WireCounts = {
  bytesSent: 0,
  bytesReceived: 0,
  sentBytesPerSecond: 0,
  receivedBytesPerSecond: 0,
}

export interface Wire {
  /** How many of `bytes` may be sent now; when not all, `onSend` is called as soon as more may. */
  allowSend(bytes: number): number
  /** `allowed`: what was allowed for them. */
  addSent(bytes: number, allowed: number): void
  /** False when no more should be read; then `onReceive` is called as soon as it may. */
  addReceived(bytes: number): boolean
  /**
   * For who takes the socket away from its connection: all bytes of the socket until now. What it sends it has been
   * allowed to. As `addReceived`.
   */
  setTotals(bytesReceived: number, bytesSent: number): boolean
  onSend: () => void
  onReceive: () => void
  counts(): WireCounts
  close(): void
}

/** By the timeline: the one object that a connection shares with what it is built upon. */
const wires = new WeakMap<object, { wire: Wire; setOwner: (peer: string) => void }>()

export function wireOf({ timeline }: { timeline: object }): Wire | undefined {
  return wires.get(timeline)?.wire
}

/** From now on the caps treat it as one with the other connections of its peer. */
export function nameWire({ timeline, remotePeer }: Connection): void {
  wires.get(timeline)?.setOwner(remotePeer.toString())
}

let count = 0

export function openWire(
  { remoteAddr, timeline }: MultiaddrConnection,
  metrics: Metrics,
  clock: Clock,
  caps: Caps,
): Wire {
  // The bytes of a relayed connection are bytes of the connection to the relay as well, and belong to the node there.
  const isOuter = isDirect(remoteAddr)
  const owner = `connection ${count++}`
  const upload = isOuter ? caps.upload?.open(owner, () => wire.onSend()) : undefined
  const download = isOuter ? caps.download?.open(owner, () => wire.onReceive()) : undefined
  const sent = createRate(clock)
  const received = createRate(clock)
  const wire: Wire = {
    allowSend: (bytes) => upload?.take(bytes) ?? bytes,
    addSent(bytes, allowed) {
      if (isOuter) metrics.add('network_bytes_sent_total', bytes)
      sent.add(bytes)
      if (allowed > bytes) upload?.giveBack(allowed - bytes)
    },
    addReceived(bytes) {
      if (isOuter) metrics.add('network_bytes_received_total', bytes)
      received.add(bytes)
      return download?.spend(bytes) ?? true
    },
    setTotals(bytesReceived, bytesSent) {
      const newSent = bytesSent - sent.total()
      if (newSent !== 0) wire.addSent(newSent, newSent)
      const newReceived = bytesReceived - received.total()
      return newReceived === 0 || wire.addReceived(newReceived)
    },
    onSend() {},
    onReceive() {},
    counts: () => ({
      bytesSent: sent.total(),
      bytesReceived: received.total(),
      sentBytesPerSecond: sent.perSecond(),
      receivedBytesPerSecond: received.perSecond(),
    }),
    close() {
      upload?.close()
      download?.close()
    },
  }
  wires.set(timeline, { wire, setOwner: (peer) => setOwner([upload, download], peer) })
  return wire
}

function setOwner(shares: readonly (RateShare | undefined)[], peer: string): void {
  for (const share of shares) if (share !== undefined) share.owner = peer
}

interface Rate {
  add(count: number): void
  total(): number
  perSecond(): number
}

/** What was added fades with e^(-age / window), so that a steady flow shows its rate and a silent link 0. */
function createRate(clock: Clock): Rate {
  let total = 0
  let perMs = 0
  let at = clock.now()

  function fade(): void {
    const now = clock.now()
    perMs *= Math.exp((at - now) / RATE_WINDOW_MS)
    at = now
  }

  return {
    add(bytes) {
      fade()
      total += bytes
      perMs += bytes / RATE_WINDOW_MS
    },
    total: () => total,
    perSecond() {
      fade()
      return Math.max(0, Math.round(1000 * perMs))
    },
  }
}
