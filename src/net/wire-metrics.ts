/** libp2p's metrics port, used for one thing: to count every byte of every connection, handshakes included. */
import type { Metrics as Libp2pMetrics, MultiaddrConnection } from '@libp2p/interface'
import { systemClock } from '../clock.ts'
import type { Clock } from '../clock.ts'
import type { Metrics } from '../metrics.ts'
import { openWire } from './wire.ts'

/** Stands in for each metric that libp2p and its services keep of themselves. */
const ignored = {
  update() {},
  increment() {},
  decrement() {},
  reset() {},
  observe() {},
  timer: () => () => {},
}

/** Who hands the socket of a connection to native code counts its bytes by `wireOf`: nothing passes here then. */
export function createWireMetrics(metrics: Metrics, clock: Clock = systemClock): Libp2pMetrics {
  const register = (): typeof ignored => ignored
  return {
    trackMultiaddrConnection: (connection) => countBytes(connection, metrics, clock),
    trackProtocolStream() {},
    registerMetric: register,
    registerMetricGroup: register,
    registerCounter: register,
    registerCounterGroup: register,
    registerHistogram: register,
    registerHistogramGroup: register,
    registerSummary: register,
    registerSummaryGroup: register,
    traceFunction: <F>(_name: string, fn: F): F => fn,
    createTrace: () => undefined,
  }
}

/**
 * Reads along by wrapping `dispatchEvent`. A `message` listener would be simpler and wrong: it counts as a reader, so
 * that bytes which arrive while a handshake passes the connection on would be given to it alone and lost.
 */
function countBytes(connection: MultiaddrConnection, metrics: Metrics, clock: Clock): void {
  const wire = openWire(connection, metrics, clock)
  const send = connection.send.bind(connection)
  connection.send = (data) => {
    wire.addSent(data.byteLength)
    return send(data)
  }
  const dispatchEvent = connection.dispatchEvent.bind(connection)
  connection.dispatchEvent = (event: Event) => {
    if ('data' in event && hasByteLength(event.data)) {
      wire.addReceived(event.data.byteLength)
    }
    return dispatchEvent(event)
  }
  // What a handshake read too far it gives back: these bytes are dispatched, and counted, once more.
  const unshift = connection.unshift.bind(connection)
  connection.unshift = (data) => {
    wire.addReceived(-data.byteLength)
    unshift(data)
  }
}

function hasByteLength(data: unknown): data is { byteLength: number } {
  return typeof data === 'object' && data !== null && 'byteLength' in data
}
