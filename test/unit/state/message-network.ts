/** A network of messages between nodes of one test: links come and go, messages take time, get lost or come twice. */
import { raceSignal, type Clock } from '../../../src/clock.ts'
import { ShoalError } from '../../../src/errors.ts'
import type { RpcHandler } from '../../../src/net/network.ts'
import type { Random } from '../../../src/random.ts'
import type { StateNetwork } from '../../../src/state/gossip.ts'

export interface MessageNetworkOptions {
  clock: Clock
  random: Random
  /** Of a message one way; 0 needs no moving of the clock. */
  latencyMs?: number
  /** Share of requests that are lost, and again of replies. */
  loss?: number
  /** Share of requests that arrive twice. */
  duplication?: number
}

export interface MessageNetwork {
  join(peer: string): StateNetwork
  connect(a: string, b: string): void
  disconnect(a: string, b: string): void
  linked(a: string, b: string): boolean
  /** From now on this share is lost, and nothing comes twice. */
  setLoss(share: number): void
  /** Requests and replies so far, in bytes, those lost or doubled included. */
  bytes(): number
  messages(): number
}

interface Station {
  handlers: Map<string, RpcHandler>
  connected: Set<(peer: string) => void>
  disconnected: Set<(peer: string) => void>
}

export function createMessageNetwork(options: MessageNetworkOptions): MessageNetwork {
  const { clock, random, latencyMs = 0 } = options
  let { loss = 0, duplication = 0 } = options
  const stations = new Map<string, Station>()
  const links = new Set<string>()
  let bytes = 0
  let messages = 0

  const linkOf = (a: string, b: string): string => [a, b].sort().join(' ')
  const linked = (a: string, b: string): boolean => links.has(linkOf(a, b))
  const neighbours = (peer: string): string[] =>
    [...stations.keys()].filter((other) => linked(peer, other))

  async function travel(from: string, to: string, payload: Uint8Array): Promise<void> {
    bytes += payload.length
    messages++
    if (latencyMs > 0) await clock.sleep(latencyMs * (0.5 + random.uniform()))
    if (!linked(from, to) || random.uniform() < loss) {
      throw new ShoalError('peer_unreachable', `a message from ${from} to ${to} was lost`)
    }
  }

  async function call(
    from: string,
    to: string,
    method: string,
    request: Uint8Array,
  ): Promise<Uint8Array> {
    await travel(from, to, request)
    const handler = stations.get(to)?.handlers.get(method)
    if (handler === undefined) throw new ShoalError('refused', `no ${method} at ${to}`)
    const context = { peer: from, signal: new AbortController().signal }
    if (random.uniform() < duplication) await handler(request.slice(), context)
    const reply = await handler(request.slice(), context)
    await travel(to, from, reply)
    return reply
  }

  return {
    join(peer) {
      const station: Station = {
        handlers: new Map(),
        connected: new Set(),
        disconnected: new Set(),
      }
      stations.set(peer, station)
      return {
        peerId: peer,
        rpc: {
          handle(method, handler) {
            station.handlers.set(method, handler)
            return () => station.handlers.delete(method)
          },
          call: (to, method, request, { signal = new AbortController().signal } = {}) =>
            raceSignal(call(peer, to, method, request), signal),
        },
        connectedPeers: () => neighbours(peer),
        onConnect(listener) {
          station.connected.add(listener)
          for (const other of neighbours(peer)) listener(other)
          return () => station.connected.delete(listener)
        },
        onDisconnect(listener) {
          station.disconnected.add(listener)
          return () => station.disconnected.delete(listener)
        },
      }
    },
    connect(a, b) {
      if (linked(a, b)) return
      links.add(linkOf(a, b))
      for (const listener of stations.get(a)?.connected ?? []) listener(b)
      for (const listener of stations.get(b)?.connected ?? []) listener(a)
    },
    disconnect(a, b) {
      if (!links.delete(linkOf(a, b))) return
      for (const listener of stations.get(a)?.disconnected ?? []) listener(b)
      for (const listener of stations.get(b)?.disconnected ?? []) listener(a)
    },
    linked,
    setLoss(share) {
      loss = share
      duplication = 0
    },
    bytes: () => bytes,
    messages: () => messages,
  }
}
