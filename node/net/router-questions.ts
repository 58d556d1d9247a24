/**
 * Questions to a router by UDP. Answers are taken from the address and port that were asked alone, and only when they fit
 * the question; what else comes is dropped and counted.
 */
import { createSocket } from 'node:dgram'
import type { Socket } from 'node:dgram'
import { once } from 'node:events'
import type { Clock } from '../../src/clock.ts'
import { abortReason } from '../../src/clock.ts'
import type { Endpoint } from '../../src/net/nat.ts'
import { decodeRouterReply } from './pcp-messages.ts'
import type { RouterReply } from './pcp-messages.ts'

export interface Ask {
  router: Endpoint
  /** The first answer that `read` takes; undefined when none comes. */
  question: <T>(
    bytes: Buffer,
    triesMs: readonly number[],
    read: (answer: RouterReply) => T | undefined,
  ) => Promise<T | undefined>
}

export interface Exchange {
  router: Endpoint
  clock: Clock
  /** A packet that is no answer of the router to what was asked. */
  onIgnored: (reason: 'source' | 'malformed' | 'stranger') => void
  signal: AbortSignal
}

/** Closes the socket when the work is done. */
export async function withRouter<T>(
  exchange: Exchange,
  work: (ask: Ask) => Promise<T>,
): Promise<T> {
  const socket = createSocket('udp4')
  // A router that is not there is told by silence.
  socket.on('error', () => {})
  try {
    socket.bind(0)
    await once(socket, 'listening', { signal: exchange.signal })
    const { router } = exchange
    return await work({
      router,
      question: (bytes, triesMs, read) => question(socket, exchange, bytes, triesMs, read),
    })
  } finally {
    socket.close()
  }
}

async function question<T>(
  socket: Socket,
  { router, clock, onIgnored, signal }: Exchange,
  bytes: Buffer,
  triesMs: readonly number[],
  read: (answer: RouterReply) => T | undefined,
): Promise<T | undefined> {
  const answered = new AbortController()
  let result: T | undefined
  const onMessage = (message: Buffer, from: { address: string; port: number }): void => {
    if (from.address !== router.host || from.port !== router.port) return onIgnored('source')
    const answer = decodeRouterReply(message)
    if (answer === undefined) return onIgnored('malformed')
    result ??= read(answer)
    if (result === undefined) return onIgnored('stranger')
    return answered.abort()
  }
  socket.on('message', onMessage)
  try {
    for (const ms of triesMs) {
      socket.send(bytes, router.port, router.host, () => {})
      await clock.sleep(ms, AbortSignal.any([signal, answered.signal])).catch(() => {})
      if (signal.aborted) throw abortReason(signal)
      if (result !== undefined) return result
    }
    return undefined
  } finally {
    socket.off('message', onMessage)
  }
}
