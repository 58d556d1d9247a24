/**
 * UDP hole punching (Ford, Srisuresh, Kegel 2005, §3): both sides send to each other's outside port until something comes
 * through; a UDX stream over the hole then carries the connection.
 *
 * A symmetric NAT gives each destination another port, which the other side cannot know. Where that one's NAT lets
 * strangers of a known IP in, the first packet tells; else the two search for each other: the symmetric side sends from
 * many sockets, the other one to random ports of its IP (the birthday paradox: 256 sockets and 1 000 probes meet with
 * 98 %). Rates are kept low enough for a home router, and the search is made once both have agreed to it.
 */
import { randomInt } from 'node:crypto'
import { multiaddr } from '@multiformats/multiaddr'
import UDX from 'udx-native'
import type { UdxSocket } from 'udx-native'
import { abortReason, systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { Endpoint } from '../../src/net/nat.ts'
import type { PunchAttempt, Puncher, PunchOffer, PunchRole } from '../../src/net/punch.ts'
import { ofFamily, refuseIp6, udpOutside } from './outside.ts'
import type { DatagramSocket, Outside } from './outside.ts'
import { UdxConnection } from './udx-connection.ts'

const TICK_MS = 40
/** The search begins when the plain way has not worked for this long. */
const SEARCH_AFTER_MS = 700
const SEARCH_SOCKETS = 256
/** Sockets and probes of one tick: 250 probes a second, 1 500 in all. */
const SOCKETS_PER_TICK = 32
const PROBES_PER_TICK = 10
const PROBES_MAX = 1_500
/** The symmetric side's sockets keep their ports open by sending again. */
const REPEAT_TICKS = 50
const FIRST_PORT = 1_024
const LAST_PORT = 65_535
/** After this side knows that bytes pass, the other one still has to learn it. */
const FAREWELL_MS = 3_000

const MAGIC = Buffer.from('shoal-punch')
const HEARD = 1

export function udpPuncher(): Puncher {
  const udx = new UDX()
  return {
    kind: 'udp',
    async prepare(reflectors, signal) {
      const socket = openSocket(udx)
      try {
        const known = ofFamily(reflectors, 4)
        return createAttempt(udx, socket, await udpOutside(datagrams(socket), known, signal))
      } catch (thrown) {
        await socket.close()
        throw thrown
      }
    },
  }
}

function openSocket(udx: UDX): UdxSocket {
  const socket = udx.createSocket()
  socket.bind(0, '0.0.0.0')
  return socket
}

function datagrams(socket: UdxSocket): DatagramSocket {
  return {
    send: (bytes, { host, port }) => socket.trySend(bytes, port, host),
    onMessage(listener) {
      socket.on('message', listener)
      return () => socket.off('message', listener)
    },
  }
}

function createAttempt(udx: UDX, socket: UdxSocket, own: Outside): PunchAttempt {
  const streamId = randomInt(2 ** 31)
  const sockets = new Set([socket])
  return {
    offer: { ...own, streamId },
    async run(remote, role) {
      refuseIp6(remote.outside.host)
      const hole = await findHole(udx, sockets, own, remote, role)
      sockets.delete(hole.socket)
      const stream = udx.createStream(streamId)
      const { host, port } = hole.remote
      stream.connect(hole.socket, remote.streamId, port, host)
      return new UdxConnection({
        stream,
        socket: hole.socket,
        remoteAddr: multiaddr(`/ip4/${host}/udp/${port}/p2p/${role.peer}`),
        direction: role.isInitiator ? 'outbound' : 'inbound',
        log: role.log.newScope('udx'),
      })
    },
    close() {
      for (const unused of sockets) unused.close().catch(() => {})
      sockets.clear()
    },
  }
}

interface Hole {
  socket: UdxSocket
  /** Where the peer's packets come from. */
  remote: Endpoint
}

async function findHole(
  udx: UDX,
  sockets: Set<UdxSocket>,
  own: Outside,
  remote: PunchOffer,
  { token, signal }: PunchRole,
): Promise<Hole> {
  const [main] = sockets
  if (main === undefined) throw new ShoalError('internal', 'the attempt is closed')
  const packet = (flags: number): Buffer => Buffer.concat([MAGIC, token, Buffer.of(flags)])
  let heard: Hole | undefined
  const found = new AbortController()

  const listen = (socket: UdxSocket): void => {
    const onMessage = (bytes: Buffer, from: Endpoint): void => {
      const isTheirs =
        bytes.length === packet(0).length && packet(0).subarray(0, -1).equals(bytes.subarray(0, -1))
      if (!isTheirs) return
      heard ??= { socket, remote: { host: from.host, port: from.port } }
      if (heard.socket !== socket) return
      socket.trySend(packet(HEARD), from.port, from.host)
      if (bytes.at(-1) === HEARD) found.abort()
    }
    socket.on('message', onMessage)
    // Longer than this side needs it: the other one may not have heard yet.
    found.signal.addEventListener('abort', () => {
      systemClock.sleep(FAREWELL_MS).then(
        () => socket.off('message', onMessage),
        () => {},
      )
    })
  }
  listen(main)

  const search = createSearch({ udx, sockets, own, remote, listen, packet })
  for (let tick = 0; !found.signal.aborted; tick++) {
    if (signal.aborted) throw abortReason(signal)
    if (heard === undefined) {
      main.trySend(packet(0), remote.outside.port, remote.outside.host)
      if (tick * TICK_MS >= SEARCH_AFTER_MS) search(tick)
    } else {
      const { socket, remote: to } = heard
      socket.trySend(packet(HEARD), to.port, to.host)
    }
    const either = AbortSignal.any([signal, found.signal])
    await systemClock.sleep(TICK_MS, either).catch(() => {})
  }
  if (heard === undefined) throw new ShoalError('internal', 'a hole without an end')
  return heard
}

interface SearchOptions {
  udx: UDX
  sockets: Set<UdxSocket>
  own: Outside
  remote: PunchOffer
  listen: (socket: UdxSocket) => void
  packet: (flags: number) => Buffer
}

/** One tick of the birthday search, for the side that needs it; nothing where both ports are known. */
function createSearch(options: SearchOptions): (tick: number) => void {
  const { own, remote } = options
  if (own.mapping === remote.mapping) return () => {}
  return own.mapping === 'dependent' ? sendFromMany(options) : sendToMany(options)
}

function sendFromMany({
  udx,
  sockets,
  remote,
  listen,
  packet,
}: SearchOptions): (tick: number) => void {
  const { host, port } = remote.outside
  return (tick) => {
    for (let count = 0; count < SOCKETS_PER_TICK && sockets.size < SEARCH_SOCKETS; count++) {
      const socket = openSocket(udx)
      sockets.add(socket)
      listen(socket)
      socket.trySend(packet(0), port, host)
    }
    if (tick % REPEAT_TICKS > 0) return
    for (const socket of sockets) socket.trySend(packet(0), port, host)
  }
}

function sendToMany({ sockets, remote, packet }: SearchOptions): () => void {
  const [socket] = sockets
  const { host } = remote.outside
  const tried = new Set<number>()
  return () => {
    for (let count = 0; count < PROBES_PER_TICK && tried.size < PROBES_MAX; count++) {
      let port = randomInt(FIRST_PORT, LAST_PORT + 1)
      while (tried.has(port)) port = randomInt(FIRST_PORT, LAST_PORT + 1)
      tried.add(port)
      socket?.trySend(packet(0), port, host)
    }
  }
}
