/**
 * Faults of the network between nodes in one process: the in-memory transport, over links that can be cut, made to
 * swallow everything, or slowed down. The nodes know nothing of it.
 */
import type { MultiaddrConnection, Upgrader } from '@libp2p/interface'
import { memory } from '@libp2p/memory'
import { ShoalError } from '../../src/errors.ts'
import type { TransportFactories } from '../../src/net/libp2p-node.ts'

type TransportFactory = TransportFactories[number]

export interface Links {
  /** For the node with this peer id. */
  transport(self: string): TransportFactory
  /** Breaks what is open between the two groups and lets nothing new come up. */
  cut(some: readonly string[], others: readonly string[]): void
  /** What these send, and what is sent to them, disappears; their connections stay open. */
  silence(peers: readonly string[]): void
  /** The access line of this peer: what it sends, and what each other sends to it, takes so long. */
  limit(peer: string, bytesPerSecond: number): void
  /** All links are whole again. */
  heal(): void
}

interface Line {
  between: readonly [string, string]
  connection: MultiaddrConnection
}

export function createLinks(): Links {
  const lines = new Set<Line>()
  const silent = new Set<string>()
  const rates = new Map<string, number>()
  let cuts: (readonly [ReadonlySet<string>, ReadonlySet<string>])[] = []

  const isCut = (one: string, other: string): boolean =>
    cuts.some(
      ([some, others]) =>
        (some.has(one) && others.has(other)) || (some.has(other) && others.has(one)),
    )

  /** Makes one end of a connection obey; the other end is obeyed by the other node's transport. */
  function obey(self: string, connection: MultiaddrConnection): MultiaddrConnection {
    const remote = connection.remoteAddr.getComponents().find(({ name }) => name === 'p2p')
    const other = remote?.value ?? ''
    if (isCut(self, other)) throw new ShoalError('peer_unreachable', 'the link is cut')
    const line: Line = { between: [self, other], connection }
    lines.add(line)
    connection.addEventListener('close', () => lines.delete(line))
    const send = connection.send.bind(connection)
    let freeAtMs = 0
    connection.send = (data) => {
      if (silent.has(self) || silent.has(other)) return true
      const rate = Math.min(rates.get(self) ?? Infinity, rates.get(other) ?? Infinity)
      if (rate === Infinity) return send(data)
      freeAtMs = Math.max(freeAtMs, performance.now()) + (1000 * data.byteLength) / rate
      setTimeout(
        () => {
          if (connection.status === 'open') send(data)
        },
        Math.max(0, freeAtMs - performance.now()),
      )
      return true
    }
    return connection
  }

  function obeyingUpgrader(self: string, upgrader: Upgrader): Upgrader {
    const upgradeInbound: Upgrader['upgradeInbound'] = (connection, options) =>
      upgrader.upgradeInbound(obey(self, connection), options)
    const upgradeOutbound: Upgrader['upgradeOutbound'] = (connection, options) =>
      upgrader.upgradeOutbound(obey(self, connection), options)
    return new Proxy(upgrader, {
      get(target, name) {
        if (name === 'upgradeInbound') return upgradeInbound
        if (name === 'upgradeOutbound') return upgradeOutbound
        return Reflect.get(target, name, target)
      },
    })
  }

  return {
    transport: (self) => (components) => {
      const transport = memory()(components)
      const dial = transport.dial.bind(transport)
      const createListener = transport.createListener.bind(transport)
      transport.dial = (address, options) =>
        dial(address, { ...options, upgrader: obeyingUpgrader(self, options.upgrader) })
      transport.createListener = (options) =>
        createListener({ ...options, upgrader: obeyingUpgrader(self, options.upgrader) })
      return transport
    },
    cut(some, others) {
      cuts.push([new Set(some), new Set(others)])
      for (const { between, connection } of lines) {
        if (isCut(...between)) connection.abort(new ShoalError('peer_unreachable', 'cut'))
      }
    },
    silence(peers) {
      for (const peer of peers) silent.add(peer)
    },
    limit(peer, bytesPerSecond) {
      rates.set(peer, bytesPerSecond)
    },
    heal() {
      cuts = []
      silent.clear()
      rates.clear()
    },
  }
}
