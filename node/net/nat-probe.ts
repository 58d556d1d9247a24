/** Finds out what kind of NAT this node is behind. */
import { createSocket } from 'node:dgram'
import type { Socket } from 'node:dgram'
import { once } from 'node:events'
import { networkInterfaces } from 'node:os'
import { ShoalError } from '../../src/errors.ts'
import type { NatFiltering, NatProbe, NatReport, NatType, Reflector } from '../../src/net/nat.ts'
import { askUdp, endpointsOf, ofFamily, tcpOutside, udpOutside } from './outside.ts'
import type { DatagramSocket } from './outside.ts'

export function natProbe(): NatProbe {
  return async (reflectors, signal) => {
    const report = await probe(reflectors, 4, signal)
    // NATs are of IPv4; where that does not get out at all, IPv6 may.
    const isSilent = report.udp === undefined && report.tcp === undefined
    const hasOther = ofFamily(reflectors, 6).length > 0
    return isSilent && hasOther ? await probe(reflectors, 6, signal) : report
  }
}

type Family = 4 | 6

async function probe(
  all: readonly Reflector[],
  family: Family,
  signal: AbortSignal,
): Promise<NatReport> {
  const reflectors = ofFamily(all, family)
  const [udp, tcp] = await Promise.all([
    probeUdp(reflectors, family, signal).catch(() => undefined),
    probeTcp(reflectors, signal).catch(() => undefined),
  ])
  if (signal.aborted) throw new ShoalError('timeout', 'the reflectors did not answer in time')
  return { type: typeOf(udp, tcp), udp, tcp }
}

async function probeUdp(
  reflectors: readonly Reflector[],
  family: Family,
  signal: AbortSignal,
): Promise<NatReport['udp']> {
  return await withSocket(family, async (socket) => {
    const outside = await udpOutside(socket, reflectors, signal)
    return { ...outside, filtering: await probeFilter(reflectors, family, signal) }
  })
}

/** From a socket that has sent to one reflector only: do answers from elsewhere come through? */
async function probeFilter(
  reflectors: readonly Reflector[],
  family: Family,
  signal: AbortSignal,
): Promise<NatFiltering> {
  const [to] = endpointsOf(reflectors)
  if (to === undefined) return 'address-and-port'
  return await withSocket(family, async (socket) => {
    await askUdp(socket, to, signal)
    const [fromAnybody, fromOtherPort] = await Promise.all([
      askUdp(socket, to, signal, 'address-and-port'),
      askUdp(socket, to, signal, 'port'),
    ])
    if (fromAnybody !== undefined) return 'independent'
    return fromOtherPort === undefined ? 'address-and-port' : 'address'
  })
}

async function probeTcp(
  reflectors: readonly Reflector[],
  signal: AbortSignal,
): Promise<NatReport['tcp']> {
  const { outside, mapping, sockets } = await tcpOutside(reflectors, signal)
  for (const socket of sockets) socket.destroy()
  return { outside, mapping }
}

function typeOf(udp: NatReport['udp'], tcp: NatReport['tcp']): NatType {
  if (udp === undefined) return tcp === undefined ? 'web-only' : 'udp-blocked'
  if (udp.mapping === 'dependent') return 'symmetric'
  const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  if (own.some(({ address }) => address === udp.outside.host)) return 'open'
  switch (udp.filtering) {
    case 'independent':
      return 'full-cone'
    case 'address':
      return 'restricted-cone'
    case 'address-and-port':
      return 'port-restricted-cone'
    default:
      return udp.filtering satisfies never
  }
}

async function withSocket<T>(
  family: Family,
  work: (socket: DatagramSocket) => Promise<T>,
): Promise<T> {
  const socket = createSocket(family === 4 ? 'udp4' : 'udp6')
  // Unreachable ports are told by silence as well.
  socket.on('error', () => {})
  try {
    socket.bind(0)
    await once(socket, 'listening')
    return await work(datagrams(socket))
  } finally {
    socket.close()
  }
}

function datagrams(socket: Socket): DatagramSocket {
  return {
    send: (bytes, { host, port }) => socket.send(bytes, port, host, () => {}),
    onMessage(listener) {
      const onMessage = (bytes: Buffer, from: { address: string; port: number }): void =>
        listener(bytes, { host: from.address, port: from.port })
      socket.on('message', onMessage)
      return () => socket.off('message', onMessage)
    },
  }
}
