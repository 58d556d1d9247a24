/**
 * libp2p's metrics port, used for one thing: to count every byte of every connection, handshakes included, and to hold
 * them to the caps.
 */
import type { Metrics as Libp2pMetrics, MultiaddrConnection } from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import type { Clock } from '../clock.ts'
import type { Metrics } from '../metrics.ts'
import { openWire } from './wire.ts'
import type { Caps, Wire } from './wire.ts'

/** Stands in for each metric that libp2p and its services keep of themselves. */
const ignored = {
  update() {},
  increment() {},
  decrement() {},
  reset() {},
  observe() {},
  timer: () => () => {},
}

/** Who hands the socket of a connection to native code looks after its `wireOf` himself: nothing passes here then. */
export function createWireMetrics(metrics: Metrics, clock: Clock, caps: Caps = {}): Libp2pMetrics {
  const register = (): typeof ignored => ignored
  return {
    trackMultiaddrConnection: (connection) =>
      watch(connection, openWire(connection, metrics, clock, caps)),
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
function watch(connection: MultiaddrConnection, wire: Wire): void {
  const mayRead = createPause(connection)
  wire.onReceive = () => mayRead(true)
  const dispatchEvent = connection.dispatchEvent.bind(connection)
  connection.dispatchEvent = (event: Event) => {
    if ('data' in event && hasByteLength(event.data)) {
      if (!wire.addReceived(event.data.byteLength)) mayRead(false)
    }
    return dispatchEvent(event)
  }
  // What a handshake read too far it gives back: these bytes are dispatched, and counted, once more.
  const unshift = connection.unshift.bind(connection)
  connection.unshift = (data) => {
    wire.addReceived(-data.byteLength)
    unshift(data)
  }
  // All transports make their connections of this class; one that did not would be counted on one side only.
  if (connection instanceof AbstractMultiaddrConnection) holdToCap(connection, wire)
  connection.addEventListener('close', () => wire.close())
}

function holdToCap(connection: AbstractMultiaddrConnection, wire: Wire): void {
  wire.onSend = () => void connection.dispatchEvent(new Event('drain'))
  const sendData = connection.sendData.bind(connection)
  connection.sendData = (data) => {
    const wanted = data.byteLength
    const allowed = wire.allowSend(wanted)
    if (allowed === 0) return { sentBytes: 0, canSendMore: false }
    const result = sendData(allowed < wanted ? data.sublist(0, allowed) : data)
    wire.addSent(result.sentBytes, allowed)
    return allowed < wanted ? { ...result, canSendMore: false } : result
  }
}

/**
 * Stops reading for the cap's sake, beside the pauses that the reader of the connection makes for his own. A WebSocket
 * cannot be stopped: what it brings is counted, and the others make up for it. Nor can a data channel, but its sender waits
 * for word of what was taken (`webrtc-connection.ts`).
 */
function createPause(connection: MultiaddrConnection): (mayRead: boolean) => void {
  const [pause, resume] = [connection.pause.bind(connection), connection.resume.bind(connection)]
  const isStoppable = !/\/wss?(\/|$)/.test(connection.remoteAddr.toString())
  let isPausedByReader = false
  let isPausedByCap = false
  connection.pause = () => {
    isPausedByReader = true
    pause()
  }
  connection.resume = () => {
    isPausedByReader = false
    if (!isPausedByCap) resume()
  }
  return (mayRead) => {
    if (!isStoppable || connection.status !== 'open' || isPausedByCap !== mayRead) return
    isPausedByCap = !mayRead
    if (isPausedByCap) pause()
    else if (!isPausedByReader) resume()
  }
}

function hasByteLength(data: unknown): data is { byteLength: number } {
  return typeof data === 'object' && data !== null && 'byteLength' in data
}
