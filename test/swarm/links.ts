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
  /** Goes on at the rates that hold now. */
  hurry: () => void
}

type Data = Parameters<MultiaddrConnection['send']>[0]

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
    const send = connection.send.bind(connection)
    const rate = (): number => Math.min(rates.get(self) ?? Infinity, rates.get(other) ?? Infinity)
    const queue = createQueue((data) => connection.status === 'open' && send(data), rate)
    const line: Line = { between: [self, other], connection, hurry: () => queue.hurry() }
    lines.add(line)
    connection.addEventListener('close', () => lines.delete(line))
    connection.send = (data) => {
      if (silent.has(self) || silent.has(other)) return true
      if (rate() === Infinity && queue.isEmpty()) return send(data)
      queue.add(data)
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
      for (const { hurry } of lines) hurry()
    },
    heal() {
      cuts = []
      silent.clear()
      rates.clear()
      for (const { hurry } of lines) hurry()
    },
  }
}

/** What is sent one after the other, each taking its time. */
function createQueue(
  send: (data: Data) => void,
  bytesPerSecond: () => number,
): { add(data: Data): void; isEmpty(): boolean; hurry(): void } {
  const waiting: Data[] = []
  let timer: NodeJS.Timeout | undefined
  const wait = (): void => {
    const [next] = waiting
    if (next === undefined) timer = undefined
    else timer = setTimeout(sendNext, (1000 * next.byteLength) / bytesPerSecond())
  }
  const sendNext = (): void => {
    const next = waiting.shift()
    if (next !== undefined) send(next)
    wait()
  }
  return {
    add(data) {
      waiting.push(data)
      if (timer === undefined) wait()
    },
    isEmpty: () => waiting.length === 0,
    hurry() {
      clearTimeout(timer)
      wait()
    },
  }
}
