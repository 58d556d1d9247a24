/** What passes over one connection: counted for the node's metrics, and for the link it makes. */
import type { MultiaddrConnection } from '@libp2p/interface'
import type { Clock } from '../clock.ts'
import type { Metrics } from '../metrics.ts'
import { isDirect } from './addresses.ts'

/** Rates follow what happened within about this time. */
const RATE_WINDOW_MS = 5_000

export interface WireCounts {
  bytesSent: number
  bytesReceived: number
  sentBytesPerSecond: number
  receivedBytesPerSecond: number
}

export interface Wire {
  addSent(bytes: number): void
  addReceived(bytes: number): void
  /** For a transport or encrypter that takes the socket away from its connection: all bytes of the socket until now. */
  setTotals(bytesReceived: number, bytesSent: number): void
  counts(): WireCounts
}

/** By connection, and by its remote address: the one object that a connection shares with what is built upon it. */
const wires = new WeakMap<object, Wire>()

export function wireOf(key: object): Wire | undefined {
  return wires.get(key)
}

export function openWire(connection: MultiaddrConnection, metrics: Metrics, clock: Clock): Wire {
  // The bytes of a relayed connection are bytes of the connection to the relay as well: the node counts them there.
  const nodeMetrics = isDirect(connection.remoteAddr) ? metrics : undefined
  const sent = createRate(clock)
  const received = createRate(clock)
  const wire: Wire = {
    addSent(bytes) {
      nodeMetrics?.add('network_bytes_sent_total', bytes)
      sent.add(bytes)
    },
    addReceived(bytes) {
      nodeMetrics?.add('network_bytes_received_total', bytes)
      received.add(bytes)
    },
    setTotals(bytesReceived, bytesSent) {
      if (bytesReceived !== received.total()) wire.addReceived(bytesReceived - received.total())
      if (bytesSent !== sent.total()) wire.addSent(bytesSent - sent.total())
    },
    counts: () => ({
      bytesSent: sent.total(),
      bytesReceived: received.total(),
      sentBytesPerSecond: sent.perSecond(),
      receivedBytesPerSecond: received.perSecond(),
    }),
  }
  wires.set(connection, wire)
  wires.set(connection.remoteAddr, wire)
  return wire
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
    add(count) {
      fade()
      total += count
      perMs += count / RATE_WINDOW_MS
    },
    total: () => total,
    perSecond() {
      fade()
      return Math.max(0, Math.round(1000 * perMs))
    },
  }
}
