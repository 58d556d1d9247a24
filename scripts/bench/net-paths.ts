/** Ways for bytes to go from one process to another: Shoal's, and bare sockets to hold them against. */
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { connect as connectTcp, createServer as createTcpServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { connect as connectTls, createServer as createTlsServer } from 'node:tls'
import { noise } from '@libp2p/noise'
import { CID } from 'multiformats/cid'
import { createCertificate } from '../../node/net/tls-certificate.ts'
import { nodeEncrypters } from '../../node/net/tls.ts'
import { natProbe } from '../../node/net/nat-probe.ts'
import { openReflector } from '../../node/net/reflector.ts'
import { loadPeerConnection, nodeTransports } from '../../node/net/transports.ts'
import { udpPuncher } from '../../node/net/udp-punch.ts'
import { systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import { silentLogger } from '../../src/log.ts'
import { createMetrics } from '../../src/metrics.ts'
import { createBlobExchange } from '../../src/net/blobs.ts'
import { createNetwork } from '../../src/net/host.ts'
import type { NetworkOptions } from '../../src/net/host.ts'
import { createIdentity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import type { BlobStore } from '../../src/store/blob-store.ts'
import { cidOf } from '../../src/store/content.ts'

/**
 * `blobs` is `tcp + tls` with all that a fetch of blobs does; the ends of `MEETING` nobody can dial: they meet at a relay,
 * and some then find a path of their own.
 */
export const PATHS = [
  'raw tcp',
  'raw tls',
  'tcp + tls',
  'tcp + noise',
  'ws + tls',
  'relayed',
  'punched udp',
  'webrtc',
  'blobs',
] as const
export type Path = (typeof PATHS)[number]

export const MEETING: ReadonlySet<Path> = new Set(['relayed', 'punched udp', 'webrtc'])

/** Transport of the path that is to take the relay's place. */
const TRANSPORTS: Partial<Record<Path, string>> = { 'punched udp': 'udx', webrtc: 'webrtc' }

/** The end that sends. */
export interface Source {
  /** For `openSink` in another process. */
  address: string
}

/** The end that asks, and receives. */
export interface Sink {
  /** Resolves when so many bytes have come, or a chunk more. */
  transfer(bytes: number): Promise<void>
  /** Sends bytes and resolves when they are back, in `into`; not on bare sockets. */
  echo(bytes: Uint8Array, into: Uint8Array): Promise<void>
}

const HOST = '127.0.0.1'
const LISTEN = `/ip4/${HOST}/tcp/0`
const DAY_MS = 86_400_000
const REFLECTOR_PORTS = [40_000, 50_000] as const
/** To be given a place at a relay, to make a hole, or for one of a thousand calls on a busy machine. */
const WAIT_MS = 30_000
const CHUNK_BYTES = LIMITS.blobBytes
/** What is sent, again and again: random, and larger than the caches of a core. */
const CONTENT_CHUNKS = 16
/** Blobs that differ, and so many chunks in all. */
const BLOBS = 256

/** `relay`: address of one, for paths that need it. */
export async function openSource(path: Path, relay?: string): Promise<Source> {
  if (path === 'raw tcp') return rawSource(createTcpServer(sendOnDemand))
  if (path !== 'raw tls') return networkSource(path, relay)
  const certificate = await createCertificate((await createIdentity()).privateKey)
  return rawSource(createTlsServer({ ...certificate, minVersion: 'TLSv1.3' }, sendOnDemand))
}

export async function openSink(path: Path, address: string): Promise<Sink> {
  if (path !== 'raw tcp' && path !== 'raw tls') return networkSink(path, address)
  const { hostname, port } = new URL(address)
  const to = { host: hostname, port: Number(port), noDelay: true }
  const socket =
    path === 'raw tcp' ? connectTcp(to) : connectTls({ ...to, rejectUnauthorized: false })
  await once(socket, path === 'raw tcp' ? 'connect' : 'secureConnect')
  return rawSink(socket)
}

/** Carries whatever it is given. Resolves to its address. */
export async function openRelay(): Promise<string> {
  const most = 2 ** 40
  const relay = {
    reservations: 64,
    circuits: 64,
    circuitsPerPeer: 64,
    circuitBytes: most,
    circuitMs: DAY_MS,
    bytesPerSecond: most,
  }
  const first = randomInt(...REFLECTOR_PORTS)
  const logger = silentLogger
  const { ports } = await openReflector({ ports: [first, first + 1], clock: systemClock, logger })
  const serving = { isPublic: true, relay, reflectorPorts: ports }
  return addressOf(await openNetwork('tcp + tls', { listen: [LISTEN], ...serving }))
}

async function rawSource(server: Server): Promise<Source> {
  server.listen(0, HOST)
  await once(server, 'listening')
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a listening TCP server has one
  const { port } = server.address() as AddressInfo
  return { address: `tcp://${HOST}:${port}` }
}

/** Eight bytes say how many are wanted. */
function sendOnDemand(socket: Socket): void {
  const pieces = randomContent().flatMap((chunk) =>
    Array.from({ length: 16 }, (_, index) => chunk.subarray(index << 16, (index + 1) << 16)),
  )
  let left = 0
  let index = 0
  const send = (): void => {
    while (left > 0) {
      const piece = pieces[index++ % pieces.length]?.subarray(0, left) ?? new Uint8Array()
      left -= piece.length
      if (!socket.write(piece)) return
    }
  }
  socket.on('drain', send)
  socket.on('error', () => {})
  socket.on('data', (request: Buffer) => {
    left += Number(request.readBigUInt64BE(0))
    send()
  })
}

function rawSink(socket: Socket): Sink {
  let left = 0
  let done: (() => void) | undefined
  socket.on('data', (chunk: Buffer) => {
    left -= chunk.length
    if (left === 0) done?.()
  })
  return {
    async transfer(bytes) {
      const finished = new Promise<void>((resolve) => {
        done = resolve
      })
      left = bytes
      const request = Buffer.alloc(8)
      request.writeBigUInt64BE(BigInt(bytes))
      socket.write(request)
      await finished
    },
    echo() {
      throw new ShoalError('internal', 'a bare socket echoes nothing')
    },
  }
}

function randomContent(): Uint8Array[] {
  return Array.from({ length: CONTENT_CHUNKS }, () => {
    const chunk = new Uint8Array(CHUNK_BYTES)
    for (let at = 0; at < chunk.length; at += 65_536) {
      crypto.getRandomValues(chunk.subarray(at, at + 65_536))
    }
    return chunk
  })
}

async function openNetwork(path: Path, options: Partial<NetworkOptions>): Promise<Network> {
  return createNetwork({
    identity: await createIdentity(),
    transports: nodeTransports(),
    connectionEncrypters: path === 'tcp + noise' ? [noise()] : nodeEncrypters(),
    listen: [],
    ...(path === 'punched udp' && { punchers: [udpPuncher()], natProbe: natProbe() }),
    ...(path === 'webrtc' && { PeerConnection: await loadPeerConnection() }),
    ...options,
  })
}

async function networkSource(path: Path, relay: string | undefined): Promise<Source> {
  const listen = path === 'ws + tls' ? `${LISTEN}/ws` : LISTEN
  const hidden = { bootstrap: relay === undefined ? [] : [relay] }
  const isHidden = MEETING.has(path)
  const network = await openNetwork(path, isHidden ? hidden : { listen: [listen] })
  const { rpc } = network
  const content = randomContent()
  let next = 0
  rpc.handle('bench/chunk', async () => content[next++ % content.length] ?? new Uint8Array())
  rpc.handle('bench/echo', async (request) => request)
  if (path === 'blobs') {
    const blobs = await distinctBlobs(content)
    createBlobExchange({ rpc, store: servingStore(blobs), metrics: createMetrics() })
    const cids = Buffer.concat(blobs.map(({ cid }) => cid.bytes))
    rpc.handle('bench/blobs', async () => cids)
  }
  if (isHidden) await until(() => network.relays().length > 0, 'a place at the relay')
  return { address: addressOf(network) }
}

function addressOf(network: Network): string {
  const [address] = network.addresses()
  if (address === undefined) throw new ShoalError('internal', 'the network listens nowhere')
  return address
}

async function until(check: () => boolean, what: string): Promise<void> {
  const limit = systemClock.deadline(WAIT_MS, what)
  while (!check()) await systemClock.sleep(50, limit)
}

interface Blob {
  cid: CID
  bytes: Uint8Array
}

async function distinctBlobs(content: readonly Uint8Array[]): Promise<Blob[]> {
  const blobs: Blob[] = []
  for (let index = 0; index < BLOBS; index++) {
    const bytes = content[index % content.length]?.slice() ?? new Uint8Array()
    bytes[0] = index
    blobs.push({ cid: await cidOf(bytes, 'raw'), bytes })
  }
  return blobs
}

/** What a file store costs is not of the network. */
function servingStore(blobs: readonly Blob[]): BlobStore {
  const byName = new Map(blobs.map(({ cid, bytes }) => [cid.toString(), bytes]))
  return { ...forgetfulStore(), get: async (cid) => byName.get(cid.toString()) }
}

function forgetfulStore(): BlobStore {
  return {
    has: async () => false,
    get: async () => undefined,
    put: async () => {},
    delete: async () => {},
    async *list() {},
  }
}

async function networkSink(path: Path, address: string): Promise<Sink> {
  const network = await openNetwork(path, {})
  const peer = await network.connect(address)
  const wanted = TRANSPORTS[path]
  if (wanted !== undefined) {
    await until(() => network.links().some(({ transport }) => transport === wanted), path)
  }
  return {
    transfer: path === 'blobs' ? await blobPull(network, peer) : chunkPull(network, peer),
    async echo(bytes, into) {
      const reply = await network.rpc.call(peer, 'bench/echo', bytes, { into, deadlineMs: WAIT_MS })
      if (reply.length !== bytes.length) throw new ShoalError('internal', 'an echo was cut off')
    },
  }
}

/** Chunks as partners pull contributions: so many at once, on the bulk lane. */
function chunkPull({ rpc }: Network, peer: string): Sink['transfer'] {
  const request = new Uint8Array()
  return async (bytes) => {
    let left = bytes
    const worker = async (): Promise<void> => {
      const into = new Uint8Array(CHUNK_BYTES)
      while (left > 0) {
        left -= CHUNK_BYTES
        await rpc.call(peer, 'bench/chunk', request, { lane: 'bulk', into })
      }
    }
    await Promise.all(Array.from({ length: LIMITS.chunksInFlight }, worker))
  }
}

/** As checkpoints are fetched: each blob held against its CID. */
async function blobPull({ rpc }: Network, peer: string): Promise<Sink['transfer']> {
  const list = await rpc.call(peer, 'bench/blobs', new Uint8Array())
  const cids: CID[] = []
  for (let rest = list; rest.length > 0;) {
    const [cid, remainder] = CID.decodeFirst(rest)
    cids.push(cid)
    rest = remainder
  }
  const exchange = createBlobExchange({ rpc, store: forgetfulStore(), metrics: createMetrics() })
  return (bytes) => exchange.fetchAll(cids.slice(0, Math.ceil(bytes / CHUNK_BYTES)), [peer])
}
